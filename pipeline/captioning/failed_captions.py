"""Finds granularities without a caption, a fault of settings and not of images.

In: the captions of a run. Out: an error with the most frequent reason.
"""

import collections
import json
from collections.abc import Iterable

import pyarrow.compute as pc

from pipeline.captioning import imported
from pipeline.config.captions import Granularity
from pipeline.engine.caption_tables import CaptionTables
from pipeline.engine.run_folder import RunFolder
from pipeline.records import KEPT, FinishReason
from pipeline.storage import files
from pipeline.storage.tables import UnitTables
from recipes.validation import one_line

_MAX_ERROR_CHARS = 200


def check(run: RunFolder, granularities: Iterable[Granularity]) -> None:
    """Raises ValueError on a granularity whose captions all failed or are missing."""
    problems = [_problem(run, granularity) for granularity in granularities]
    if any(problems):
        raise ValueError("; ".join(filter(None, problems)))


def _problem(run: RunFolder, granularity: Granularity) -> str:
    """Why a granularity has no caption; "" if it has one, or needs none."""
    tables = CaptionTables.open(run.captions(granularity))
    names = [name for unit in run.units for name in tables.names(unit)]
    if granularity.captioner == "imported":
        return "" if names else _unmatched(run, granularity)
    errors = _errors(tables.tables, names)
    if not errors:
        return ""
    ((error, n_alike),) = errors.most_common(1)
    folder = f"{granularity.name}-{run.granularity_fingerprint(granularity)}"
    return (
        f"granularity {granularity.name!r}: all {errors.total():,} captions failed,"
        f" {n_alike:,} of them with: {one_line(error, _MAX_ERROR_CHARS)} (other"
        f" settings, or `remove --granularity {folder}`, ask again)"
    )


def _errors(tables: UnitTables, names: Iterable[str]) -> collections.Counter[str]:
    """The number of captions with each error; empty if any caption succeeded."""
    errors: collections.Counter[str] = collections.Counter()
    for name in names:
        reasons = tables.read(name, ["finish_reason"])["finish_reason"]
        if pc.any(pc.not_equal(reasons, FinishReason.ERROR)).as_py():
            return collections.Counter()
        errors.update(tables.read(name, ["text"])["text"].to_pylist())
    return errors


def _unmatched(run: RunFolder, granularity: Granularity) -> str:
    """Why an import has no caption for the kept images, from its receipt."""
    outcomes = (run.decisions.read(u.name, ["outcome"])["outcome"] for u in run.units)
    if not any(pc.any(pc.equal(found, KEPT)).as_py() for found in outcomes):
        return ""
    path = files.join(run.captions(granularity), imported.RECEIPT_NAME)
    n_rows = json.loads(files.read(path))["n_rows"]
    counts = ", ".join(f"{n:,} {kind}" for kind, n in n_rows.items())
    return (
        f"granularity {granularity.name!r}: no row of"
        f" checkpoint={granularity.checkpoint!r} names a kept image ({counts})"
    )
