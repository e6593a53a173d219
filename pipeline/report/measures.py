"""The numbers that rules compare with thresholds, as columns over sampled pairs.

In: facts of pairs. Out: a column for each measure.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.report.pair_facts import Match, PairFacts

N_WORDS = "n_words"
SHORT_SIDE = "short_side_px"
ASPECT = "aspect"
PROBABILITY = "language_probability"
ALIGNMENT = "alignment_score"
EVALUATION = "evaluation_similarity"
SEED = "seed_similarity"


@dataclasses.dataclass(frozen=True, eq=False)
class Measure:
    """One number per sampled pair; NaN where a pair has none."""

    name: str
    title: str
    values: np.ndarray  # float64 [n]
    is_whole: bool = False  # whole numbers
    is_ratio: bool = False  # drawn on a logarithmic axis


def compute_measures(sample: Sequence[PairFacts]) -> dict[str, Measure]:
    """Returns name to measure, without measures that no pair has."""
    all_measures = (
        _measure(N_WORDS, "words of alt text", sample, lambda x: x.n_words, whole=True),
        _measure(
            SHORT_SIDE,
            "short side of the image, pixels",
            sample,
            lambda x: min(x.pair.original_sides_px),
            whole=True,
            ratio=True,
        ),
        _measure(ASPECT, "long side over short side", sample, _aspect, ratio=True),
        _measure(
            PROBABILITY,
            "probability of the language detected",
            sample,
            lambda x: x.language.probability,
        ),
        _measure(
            ALIGNMENT,
            "alignment score: cosine of image and alt text",
            sample,
            lambda x: x.alignment_score,
        ),
        _measure(
            EVALUATION,
            "cosine with the nearest evaluation image",
            sample,
            lambda x: _similarity(x.evaluation),
        ),
        _measure(
            SEED,
            "cosine with the nearest curated seed",
            sample,
            lambda x: _similarity(x.seed),
        ),
    )
    return {one.name: one for one in all_measures if not np.isnan(one.values).all()}


def _measure(
    name: str,
    title: str,
    sample: Sequence[PairFacts],
    value_of: Callable[[PairFacts], float],
    *,
    whole: bool = False,
    ratio: bool = False,
) -> Measure:
    values = np.array([value_of(one) for one in sample], np.float64)
    return Measure(name, title, values, whole, ratio)


def _aspect(one: PairFacts) -> float:
    """Equals the aspect of `rules.ExtremeAspect` to the last bit."""
    sides_px = one.pair.original_sides_px
    return max(sides_px) / min(sides_px)


def _similarity(match: Match | None) -> float:
    return math.nan if match is None else match.similarity
