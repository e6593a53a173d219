"""The terms of a configuration, and what they need together."""

import collections
import importlib
from collections.abc import Iterable, Sequence

from recipes.user_code import UserCodeError, call
from trainer.config import AddedTerm, Ema, Text, TrainConfig
from trainer.models.two_tower import abstract_params
from trainer.step.terms.contrastive import Contrastive
from trainer.step.terms.distillation import Distillation
from trainer.step.terms.patch import Patch
from trainer.step.terms.term import BatchTerm, PartTerm, Term, View, Weighted


def declared_terms(config: TrainConfig) -> tuple[Weighted, ...]:
    """Returns the terms of the total, none of which has a weight of 0.

    Raises ValueError, with one line for the user, if an added term does not fit.
    """
    model, ssl = config.model, config.self_supervision
    n_of_text = collections.Counter(pair.text for pair in config.contrastive)
    terms = [
        Weighted(
            pair.weight,
            Contrastive(
                pair, pair.loss or model.contrastive_loss, n_of_text[pair.text] == 1
            ),
        )
        for pair in config.contrastive
    ]
    if ssl.distillation_weight > 0:
        terms.append(Weighted(ssl.distillation_weight, Distillation(ssl, model.head)))
    if ssl.patch_weight > 0:
        terms.append(Weighted(ssl.patch_weight, Patch(ssl, model.head)))
    added = [_added_term(number, one) for number, one in enumerate(config.terms)]
    _check_reach(config, added)
    check_added(config, terms, added)
    return (*terms, *added)


def student_views(config: TrainConfig, terms: Iterable[Term]) -> frozenset[View]:
    """Returns the views of the student that are encoded for some terms.

    The whole view is the teacher's too if their encoder is one, and the masked view is
    the whole one if nothing is hidden.
    """
    terms = tuple(terms)
    ssl = config.self_supervision
    views = frozenset[View]().union(*(term.views for term in terms))
    if ssl.mask_ratio == 0 and View.MASKED in views:
        views = views - {View.MASKED} | {View.WHOLE}
    if ssl.ema is Ema.HEAD and any(term.needs_teacher for term in terms):
        views |= {View.WHOLE}
    return views


def texts(terms: Iterable[Term]) -> tuple[Text, ...]:
    """Returns the texts that some term reads, in the order of `Text`."""
    read = {
        text for term in terms if isinstance(term, BatchTerm) for text in term.texts
    }
    return tuple(text for text in Text if text in read)


def untrained(terms: Iterable[Weighted], params: Iterable[str]) -> list[str]:
    """Returns the groups of parameters that the gradient of no term reaches."""
    reached = frozenset[str]().union(*(term.reach for _, term in terms))
    return sorted(set(params) - reached)


def _added_term(number: int, added: AddedTerm) -> Weighted:
    """The term that a `MODULE:CLASS` names, with its settings."""
    name = f"terms[{number}].term={added.term}"
    module, _, attribute = added.term.partition(":")
    try:
        kind = getattr(call(importlib.import_module, module), attribute, None)
    except UserCodeError as error:
        raise ValueError(f"{name}: {error}; expected MODULE:CLASS of a term") from error
    if not (isinstance(kind, type) and issubclass(kind, BatchTerm | PartTerm)):
        raise ValueError(f"{name}: expected MODULE:CLASS of a BatchTerm or a PartTerm")
    try:
        return Weighted(added.weight, call(kind, **added.settings))
    except UserCodeError as error:
        raise ValueError(f"terms[{number}].settings: {error}") from error


def _check_reach(config: TrainConfig, added: Sequence[Weighted]) -> None:
    """Raises ValueError if a term says that it reaches what is not there."""
    if not added:
        return
    groups = abstract_params(config.model, has_head=config.self_supervision.is_on)
    for number, (_, term) in enumerate(added):
        if unknown := sorted(term.reach - groups.keys()):
            raise ValueError(
                f"terms[{number}]={term.name}: reach={unknown}, expected groups of"
                f" parameters: {', '.join(groups)}"
            )


def check_added(
    config: TrainConfig, terms: Iterable[Weighted], added: Iterable[Weighted]
) -> None:
    """Raises ValueError unless names differ and the views that are read exist."""
    ssl = config.self_supervision
    view_to_weight = {
        View.LOCAL: ("distillation_weight", ssl.distillation_weight),
        View.MASKED: ("patch_weight", ssl.patch_weight),
    }
    names = {term.name for _, term in terms}
    for number, (_, term) in enumerate(added):
        found = f"terms[{number}]={term.name}"
        if term.name in names:
            raise ValueError(f"{found}: expected a name that no other term has")
        names.add(term.name)
        for view in term.views & view_to_weight.keys():
            field, weight = view_to_weight[view]
            if weight == 0:
                raise ValueError(
                    f"{found}: reads the {view} view, expected"
                    f" self_supervision.{field} of more than 0"
                )
        if term.needs_teacher and not ssl.is_on:
            raise ValueError(f"{found}: needs a teacher, expected self_supervision")
