"""Captions that failed: how many a recipe allows, and how they are asked for again.

In: the captions of a run, and what their summaries say. Out: an error with the most
frequent reason if too many failed; or tables without them.
"""

import collections
import json
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.captioning import imported
from pipeline.config.captions import Granularity
from pipeline.engine import error_tables
from pipeline.engine.caption_tables import ERRORS, FAILED, STAGE, CaptionTables
from pipeline.engine.run_folder import RunFolder
from pipeline.engine.summaries import Summaries
from pipeline.records import KEPT, FinishReason
from pipeline.storage import files


def check(run: RunFolder, granularities: Iterable[Granularity]) -> None:
    """Raises ValueError on a granularity of which too many captions failed.

    Or of which captions are imported, and none is of a kept image.
    """
    problems = [_problem(run, granularity) for granularity in granularities]
    if any(problems):
        raise ValueError("; ".join(filter(None, problems)))


def _problem(run: RunFolder, granularity: Granularity) -> str:
    """What is wrong with the captions of a granularity; "" if nothing is."""
    summaries = [summary for _, summary in _summaries(run, granularity)]
    if granularity.captioner == "imported":
        return "" if summaries else _unmatched(run, granularity)
    n = sum(summary["rows"] for summary in summaries)
    n_failed = sum(summary[FAILED] for summary in summaries)
    max_share = run.config.max_failed_share
    if n_failed <= max_share * n:
        return ""
    errors: collections.Counter[str] = collections.Counter()
    for summary in summaries:
        errors.update(summary[ERRORS])
    ((error, n_alike),) = errors.most_common(1)
    return (
        f"max_failed_share={max_share:g}: expected at most that share of the captions"
        f" of granularity {granularity.name!r} to fail, but {n_failed:,} of {n:,} did,"
        f" {n_alike:,} of them with: {error} (`retry-failed` asks again)"
    )


def _summaries(
    run: RunFolder, granularity: Granularity
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the names and summaries of the tables of the present lots."""
    names = {name for lot in run.lots for name in (lot.base, lot.name)}
    found = Summaries.read(run.captions(granularity))
    for name, summary in found.items():
        if name.rpartition(".")[0] in names:
            yield name, summary


def _unmatched(run: RunFolder, granularity: Granularity) -> str:
    """Why an import has no caption for the kept images, from its receipt."""
    decisions = Summaries.read(run.decisions.folder)
    outcomes = (decisions[lot.name]["outcomes"] for lot in run.lots)
    if not any(counts.get(KEPT) for counts in outcomes):
        return ""
    path = files.join(run.captions(granularity), imported.RECEIPT_NAME)
    n_rows = json.loads(files.read(path))["n_rows"]
    counts = ", ".join(f"{n:,} {kind}" for kind, n in n_rows.items())
    return (
        f"granularity {granularity.name!r}: no row of"
        f" checkpoint={granularity.checkpoint!r} names a kept image ({counts})"
    )


def forget(run: RunFolder, granularities: Iterable[Granularity]) -> int:
    """Forgets the captions that failed, so that `caption` asks for them again.

    Of an image and a prompt of which one sample failed, all samples are forgotten.
    Returns how many captions had failed.
    """
    n_forgotten = 0
    errors = error_tables.tables(run.root, STAGE)
    for granularity in granularities:
        tables = CaptionTables.at(run.captions(granularity))
        for name, summary in _summaries(run, granularity):
            if summary.get(FAILED):
                _remove_failed(tables, name)
                n_forgotten += summary[FAILED]
        prefix = error_prefix(run.captions(granularity))
        errors.delete(errors.lot_names(prefix))
    return n_forgotten


def error_prefix(folder: str) -> str:
    """Of the names of error tables of a granularity, from the folder of its captions:
    behind it are the names of its tables."""
    return f"{files.split(folder)[1]}."


def _remove_failed(tables: CaptionTables, name: str) -> None:
    """Replaces a table by one of what did not fail: a table never changes."""
    rows = list(tables.rows_of(name))
    failed = {
        (row.image_hash, row.prompt_hash)
        for row in rows
        if row.finish_reason == FinishReason.ERROR
    }
    left = [row for row in rows if (row.image_hash, row.prompt_hash) not in failed]
    if left:
        tables.add(name.rpartition(".")[0], left)
    tables.tables.delete([name])
