"""Chooses the two texts of a sample: alt text and synthetic caption.

The first is the alt text. The second is a synthetic caption, of a granularity drawn by
weight; the alt text may be one of these granularities. A sample without the one gets
the other in its place.
"""

import bisect
import itertools
from collections.abc import Mapping, Sequence

from pipeline.records import Sample

N_DRAWS = 2  # granularity, one of its captions
ALT_TEXT = "alt_text"  # as a granularity: the second text may be the alt text


def choose_texts(
    sample: Sample, draws: Sequence[float], granularity_weights: Mapping[str, float]
) -> tuple[str, str]:
    """Returns (alt text, synthetic caption); each replaces the other if that is
    missing.

    `draws` are `N_DRAWS` uniform numbers in [0, 1). Raises ValueError if the sample has
    no text at all.
    """
    alt_text = sample.alt_text.strip()
    synthetic_caption = _synthetic_caption(sample, draws, granularity_weights)
    if not alt_text and not synthetic_caption:
        expected = ", ".join(granularity_weights) or "none"
        raise ValueError(f"neither alt text nor a caption (granularities: {expected})")
    return alt_text or synthetic_caption, synthetic_caption or alt_text


def _synthetic_caption(
    sample: Sample, draws: Sequence[float], granularity_weights: Mapping[str, float]
) -> str:
    """A caption of a granularity that the sample has, or "" if it has none."""
    captions = {**sample.captions, ALT_TEXT: (sample.alt_text,)}
    found = {
        name: [text for text in captions.get(name, ()) if text.strip()]
        for name in sorted(granularity_weights)
    }
    names = [name for name, texts in found.items() if texts]
    if not names:
        return ""
    texts = found[names[_draw([granularity_weights[name] for name in names], draws[0])]]
    return texts[int(draws[1] * len(texts))]


def _draw(weights: Sequence[float], draw: float) -> int:
    """Index i with probability weights[i] / sum(weights)."""
    sums = list(itertools.accumulate(weights))
    return min(bisect.bisect_right(sums, draw * sums[-1]), len(sums) - 1)
