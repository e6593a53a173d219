"""The steps of `select` as columns over sampled pairs, for the page to repeat.

In: a selection and facts of pairs. Out: steps in the order in which they decide. The
page repeats steps that decide on single pairs, and exact duplicates, for any threshold.
For all other steps (near duplicates, clusters) it only knows the decisions of the run;
their decision on a pair that an earlier step dropped is unknown.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from pipeline.config.selection import (
    DropRule,
    KeepFraction,
    KeepLanguages,
    MinScore,
    NearSeeds,
    SelectionConfig,
)
from pipeline.records import DropReason
from pipeline.report import measures
from pipeline.report.pair_facts import PairFacts
from pipeline.selection import rules as filters
from pipeline.selection.lot_decisions import OUTCOMES

UNKNOWN = "unknown"  # the outcome of a pair that a step would have to decide again
PAGE_OUTCOMES = (*map(str, OUTCOMES), UNKNOWN)

_PASSES = -1.0  # in a column of outcomes
_RULE_REASONS = (
    DropReason.FEW_WORDS,
    DropReason.BOILERPLATE_ALT_TEXT,
    DropReason.TINY_IMAGE,
    DropReason.EXTREME_ASPECT,
)
_POLICY_TO_CODE = {"alignment": 1.0, "keep": 2.0, "drop": 3.0}  # of short texts

# These steps also drop pairs of sources with `keep_all`.
_FOR_ALL = (
    DropReason.OPT_OUT,
    DropReason.DROP_LIST,
    DropReason.UNSAFE_IMAGE,
    DropReason.NEAR_EVALUATION,
)


@dataclasses.dataclass(frozen=True)
class Knob:
    """One adjustable threshold; `path` is its name in `--set`."""

    path: str
    label: str
    value: float


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One step over n sampled pairs.

    Kinds and their columns:
      `fixed`: position in PAGE_OUTCOMES of an `outcome`, or -1.
      `least`, `most`: a `value` to compare with the knob; NaN fails.
      `language`, `fraction`: as the selection decides; `short` texts are decided by
        their alignment score (1), kept (2) or dropped (3).
      `first_of_image`: of each `group` the pair with the smallest `rank` stays.
    """

    reason: str
    kind: Literal["fixed", "least", "most", "language", "fraction", "first_of_image"]
    spares_keep_all: bool
    columns: Mapping[str, np.ndarray]  # float64 [n] each
    knobs: tuple[Knob, ...] = ()
    measure: str = ""  # the measure that its thresholds apply to


def make_steps(
    selection: SelectionConfig,
    sample: Sequence[PairFacts],
    name_to_measure: Mapping[str, measures.Measure],
) -> list[Step]:
    """Makes the steps that can decide on pairs of the sample, in their order."""
    maker = _StepMaker(selection, sample, name_to_measure)
    found: list[Step] = []
    for reason in DropReason:
        if reason == _RULE_REASONS[0]:
            found += maker.rules()
        if reason not in _RULE_REASONS:
            found += maker.step(reason)
    return found


class _StepMaker:
    """Makes the steps of one selection over one sample."""

    def __init__(
        self,
        selection: SelectionConfig,
        sample: Sequence[PairFacts],
        name_to_measure: Mapping[str, measures.Measure],
    ) -> None:
        self._selection = selection
        self._sample = sample
        self._name_to_measure = name_to_measure
        self._outcomes = [one.decision.outcome for one in sample]

    def rules(self) -> Iterator[Step]:
        for number, rule in enumerate(self._selection.drop_rules):
            path = f"selection.drop_rules.{number}"
            yield self._rule(rule, number, path)

    def step(self, reason: DropReason) -> list[Step]:
        """The steps that drop for this reason; none if it is switched off."""
        found = self._repeatable(reason)
        if found is not None:
            return [found]
        return [self._recorded(reason)] if reason in self._outcomes else []

    def _repeatable(self, reason: DropReason) -> Step | None:
        """The step that the page can repeat; None if it cannot, or it is off."""
        selection = self._selection
        alignment, bound = selection.alignment, selection.max_evaluation_similarity
        if selection.evaluation_duplicates is not None:
            bound = None  # the page cannot repeat what other descriptors decide
        if reason == DropReason.LANGUAGE and selection.language is not None:
            return self._language(selection.language)
        if reason == DropReason.LOW_ALIGNMENT:
            path = "selection.alignment."
            match alignment:
                case MinScore(min_score):
                    knob = Knob(path + "min_score", "at least", min_score)
                    return self._bound(reason, "least", measures.ALIGNMENT, knob)
                case KeepFraction(keep_fraction, per_source=False):
                    label = "best share to keep"
                    knob = Knob(path + "keep_fraction", label, keep_fraction)
                    return self._bound(reason, "fraction", measures.ALIGNMENT, knob)
        if reason == DropReason.EXACT_DUPLICATE and selection.drop_exact_duplicates:
            return self._first_of_image()
        if reason == DropReason.NEAR_EVALUATION and bound is not None:
            knob = Knob("selection.max_evaluation_similarity", "at most", bound)
            return self._bound(reason, "most", measures.EVALUATION, knob)
        retrieval = selection.retrieval
        if reason == DropReason.FAR_FROM_SEEDS and isinstance(retrieval, NearSeeds):
            path, least = "selection.retrieval.min_similarity", retrieval.min_similarity
            knob = Knob(path, "at least", least)
            return self._bound(reason, "least", measures.SEED, knob)
        return None

    def _rule(self, rule: DropRule, number: int, path: str) -> Step:
        match rule:
            case filters.FewWords(n):
                knob = Knob(f"{path}.min_words", "at least", n)
                reason, name = DropReason.FEW_WORDS, measures.N_WORDS
                return self._bound(reason, "least", name, knob)
            case filters.SmallImage(n):
                knob = Knob(f"{path}.min_side_px", "at least", n)
                reason, name = DropReason.TINY_IMAGE, measures.SHORT_SIDE
                return self._bound(reason, "least", name, knob)
            case filters.ExtremeAspect(most):
                knob = Knob(f"{path}.max_aspect", "at most", most)
                reason, name = DropReason.EXTREME_ASPECT, measures.ASPECT
                return self._bound(reason, "most", name, knob)
            case filters.BoilerplateAltText():
                named = str(DropReason.BOILERPLATE_ALT_TEXT)
            case _:
                named = type(rule).__name__
        drops = [one.drops[number] for one in self._sample]
        reasons = ["" if drop is None else str(drop.reason) for drop in drops]
        return self._fixed(named, reasons, spares_keep_all=True)

    def _bound(
        self,
        reason: DropReason,
        kind: Literal["least", "most", "fraction"],
        measure: str,
        knob: Knob,
    ) -> Step:
        found = self._name_to_measure.get(measure)
        nothing = np.full(len(self._sample), np.nan)
        values = nothing if found is None else found.values
        spares = reason not in _FOR_ALL
        return Step(reason, kind, spares, {"value": values}, (knob,), measure)

    def _language(self, languages: KeepLanguages) -> Step:
        path = "selection.language."
        sample = self._sample
        is_wanted = [one.language.code in languages.languages for one in sample]
        columns = {
            "probability": np.array([one.language.probability for one in sample]),
            "is_wanted": np.array(is_wanted, np.float64),
            "short": np.zeros(len(sample)),
            "score": np.array([one.alignment_score for one in sample], np.float64),
        }
        named = ", ".join(languages.languages)
        foreign = languages.min_foreign_probability
        knobs = [
            Knob(f"{path}min_probability", f"{named} from", languages.min_probability),
            Knob(f"{path}min_foreign_probability", "others from", foreign),
        ]
        if short := languages.short_text:
            is_short = np.array([one.n_words <= short.max_words for one in sample])
            columns["short"] = is_short * _POLICY_TO_CODE[short.policy]
            if short.policy == "alignment":
                label = f"alignment of up to {short.max_words} words"
                knob = Knob(f"{path}short_text.min_score", label, short.min_score)
                knobs.append(knob)
        name = measures.PROBABILITY
        reason = DropReason.LANGUAGE
        return Step(reason, "language", True, columns, tuple(knobs), name)

    def _first_of_image(self) -> Step:
        """Groups are images; the rank is that of `duplicates.exact`."""
        sample = self._sample
        order = sorted(
            range(len(sample)),
            key=lambda i: (
                sample[i].pair.sample_id,
                sample[i].shard.uri,
                sample[i].location.row,
            ),
        )
        rank = np.empty(len(sample))
        rank[order] = np.arange(len(sample))
        images = [one.pair.image_hash for one in sample]
        numbers = dict(zip(dict.fromkeys(images), itertools.count(), strict=False))
        group = np.array([numbers[image] for image in images], np.float64)
        columns = {"group": group, "rank": rank}
        return Step(DropReason.EXACT_DUPLICATE, "first_of_image", True, columns)

    def _recorded(self, reason: DropReason) -> Step:
        """The decisions of the run; unknown for pairs that an earlier step dropped."""
        earlier = {str(one) for one in DropReason if _precedes(one, reason)}
        known = {str(reason): str(reason)} | dict.fromkeys(earlier, UNKNOWN)
        outcomes = [known.get(outcome, "") for outcome in self._outcomes]
        return self._fixed(reason, outcomes, spares_keep_all=reason not in _FOR_ALL)

    def _fixed(
        self, reason: str, outcomes: Sequence[str], *, spares_keep_all: bool
    ) -> Step:
        codes = [PAGE_OUTCOMES.index(o) if o else _PASSES for o in outcomes]
        columns = {"outcome": np.array(codes, np.float64)}
        return Step(reason, "fixed", spares_keep_all, columns)


def _precedes(one: DropReason, other: DropReason) -> bool:
    reasons = list(DropReason)
    return reasons.index(one) < reasons.index(other)


def decision_codes(sample: Sequence[PairFacts]) -> np.ndarray:
    """Positions in PAGE_OUTCOMES of the decisions of the run: int [n]."""
    return np.array([PAGE_OUTCOMES.index(one.decision.outcome) for one in sample])
