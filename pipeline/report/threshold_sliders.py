"""The data with which the page repeats `select` for other thresholds.

In: steps over sampled pairs, and the counts of the run. Out: JSON values that `page.js`
reads: columns as base64 of float64, texts, and the range of every threshold.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import records
from pipeline.report.measures import Measure
from pipeline.report.pair_facts import PairFacts
from pipeline.report.select_steps import PAGE_OUTCOMES, Knob, Step, decision_codes
from recipes.safe_text import visible

_TEXT_CHARS = 120
_TAIL = 0.001


def to_json(
    sample: Sequence[PairFacts],
    steps: Sequence[Step],
    outcome_to_count: Mapping[str, int],
    pictures: Mapping[str, str],
) -> dict[str, Any]:
    """Returns the input of `page.js`.

    Args:
      sample: Sampled pairs.
      steps: Steps over the sample.
      outcome_to_count: The ledger of the run.
      pictures: Key of a location to the `data:` URL of its picture.
    """
    n_readable = sum(outcome_to_count.values()) - outcome_to_count[records.UNREADABLE]
    return {
        "outcomes": PAGE_OUTCOMES,
        "counts": dict(outcome_to_count),
        "n_readable": n_readable,
        "n_images": len({one.pair.image_hash for one in sample}),
        "decided": encode_column(decision_codes(sample)),
        "keep_all": encode_column(
            np.array([one.lot.source.keep_all for one in sample])
        ),
        "steps": [_step(step) for step in steps],
        "ids": [one.pair.sample_id.hex() for one in sample],
        "texts": [visible(one.pair.alt_text, _TEXT_CHARS) for one in sample],
        "keys": [one.location.key for one in sample],
        "pictures": dict(pictures),
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "reason": step.reason,
        "kind": step.kind,
        "spares_keep_all": step.spares_keep_all,
        "columns": {
            name: encode_column(values) for name, values in step.columns.items()
        },
        "knobs": [{"path": knob.path, "value": knob.value} for knob in step.knobs],
    }


def encode_column(values: np.ndarray) -> str:
    """Encodes numbers as base64 of little-endian float64."""
    return base64.b64encode(values.astype("<f8").tobytes()).decode()


def slider_range(knob: Knob, step: Step, measure: Measure | None) -> dict[str, float]:
    """Returns the ends of a slider and the number of its decimals."""
    if step.kind == "fraction":
        return {"low": 0.001, "high": 1.0, "n_decimals": 3}
    values = np.zeros(0) if measure is None else measure.values
    if step.kind == "language" and not knob.path.endswith("probability"):
        values = step.columns["score"]
    ends = [knob.value, *_quantiles(values)]
    if measure is not None and measure.is_whole:
        return {"low": min(ends), "high": max(ends), "n_decimals": 0}
    n_decimals = 3 if max(ends) <= 1 else 2
    lot = 10**-n_decimals
    low, high = math.floor(min(ends) / lot), math.ceil(max(ends) / lot)
    return {
        "low": round(low * lot, n_decimals),
        "high": round(high * lot, n_decimals),
        "n_decimals": n_decimals,
    }


def _quantiles(values: np.ndarray) -> list[float]:
    there = values[np.isfinite(values)]
    return np.quantile(there, [_TAIL, 1 - _TAIL]).tolist() if len(there) else [0.0, 1.0]
