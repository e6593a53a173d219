"""What the terms keep in the training state: centers, and whatever a term declares."""

from collections.abc import Iterable

from trainer.config import TrainConfig
from trainer.step import teacher
from trainer.step.terms.declared import declared_terms
from trainer.step.terms.term import Weighted


def initial_kept(config: TrainConfig, params: dict) -> dict[str, dict]:
    """Returns groups of the state before the first step.

    The centers are there for each kind of token, even without its term.
    """
    centers = teacher.init_centers(config.model.head, config.self_supervision)
    kept: dict[str, dict] = {"centers": centers}
    for _, term in declared_terms(config):
        if term.place is not None:
            group = kept.setdefault(term.place.group, {})
            group[term.place.name] = term.initial_state(params)
    return kept


def next_kept(
    terms: Iterable[Weighted], state: dict, statistics: dict, params: dict
) -> dict[str, dict]:
    """Returns the same groups after a step; `params` are those after the update."""
    kept = {"centers": {**state["centers"]}}
    for _, term in terms:
        if term.place is None:
            continue
        group, name = term.place
        kept.setdefault(group, {})[name] = term.next_state(
            state[group][name], statistics.get(name), params, state["step"]
        )
    return kept
