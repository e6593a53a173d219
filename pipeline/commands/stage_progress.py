"""How much work a stage has, and what its counters say of it.

In: a run and a stage. Out: how many tables it makes and where they appear; lines and
numbers of what it did.
"""

import collections
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipeline.captioning import imported as importing
from pipeline.config.captions import Granularity
from pipeline.config.curation import ImageTextSource
from pipeline.engine import progress
from pipeline.engine.caption_tables import FAILED
from pipeline.engine.run_folder import RunFolder
from pipeline.export.shard_formats import TFRECORD, ShardFormat
from pipeline.sources.shards import Unit
from pipeline.storage import files
from pipeline.storage.tables import UnitTables


def describe(counters: Mapping[str, int]) -> str:
    """One line: what a stage did."""
    if not has_work(counters):
        return "nothing to do"
    return ", ".join(f"{name} {n:,}" for name, n in sorted(counters.items()) if n)


def has_work(counters: Mapping[str, int]) -> bool:
    """Whether a stage had anything to do."""
    done = {name for name, n in counters.items() if n}
    return bool(done - {"units_skipped", "shards_skipped", "without_url"})


def n_pairs_of(stage: str, counters: Mapping[str, int]) -> int:
    """How many pairs a stage has worked on; `select` counts each under its outcome."""
    if stage == "score":
        return counters.get("pairs", 0)
    return sum(n for name, n in counters.items() if name != "units_skipped")


def n_rows(stage: str, counters: Mapping[str, int]) -> int:
    """Pairs or captions that a stage has written."""
    if stage == "select":
        return n_pairs_of(stage, counters)
    names = {
        "score": ("pairs", "evaluation_images", "seed_images"),
        "caption": ("captions_written",),
    }
    return sum(counters.get(name, 0) for name in names.get(stage, ("samples_written",)))


def work_of(
    stage: str,
    run: RunFolder,
    granularities: Sequence[Granularity],
    shard_format: ShardFormat = TFRECORD,
) -> progress.Work:
    """How many tables a stage makes, and where they appear.

    An import counts as one: nobody knows before its end which units it finds texts for.
    """
    if stage == "score":
        pairs = {run.pairs(unit.source).folder for unit in run.all_units}
        rows = progress.Rows(pairs, "unreadable")
        to_make = _tables_of(run.all_units, run.embeddings)
        return progress.Work(len(run.all_units), lambda: _n_made(to_make), rows)
    if stage == "select":
        to_make = {run.decisions: {unit.name for unit in run.units}}
        return progress.Work(len(run.units), lambda: _n_made(to_make))
    if stage == "caption":
        return _captioning_of(run, granularities)
    shards = files.join(shard_format.path(run.root), "manifest.json")
    return progress.Work(1, lambda: int(files.is_file(shards)))


def _captioning_of(
    run: RunFolder, granularities: Sequence[Granularity]
) -> progress.Work:
    imported = [g for g in granularities if g.captioner == "imported"]
    folders = {run.captions(g) for g in granularities if g not in imported}
    n_total = len(run.units) * len(folders) + len(imported)
    rows = progress.Rows(folders, FAILED)

    def count_done() -> int:
        n_imported = sum(importing.is_complete(run, g) for g in imported)
        return _n_files(folders) + n_imported

    return progress.Work(n_total, count_done, rows)


def _tables_of(
    units: Iterable[Unit], tables_of: Callable[[ImageTextSource], UnitTables]
) -> dict[UnitTables, set[str]]:
    """Names of the units whose tables are to lie there."""
    by_source = itertools.groupby(units, lambda unit: unit.source)
    names: dict[UnitTables, set[str]] = collections.defaultdict(set)
    for source, group in by_source:
        names[tables_of(source)] |= {unit.name for unit in group}
    return names


def _n_made(to_make: Mapping[UnitTables, set[str]]) -> int:
    """Tables of what shards held before lie in the same folders."""
    return sum(len(names & tables.unit_names()) for tables, names in to_make.items())


def _n_files(folders: set[str]) -> int:
    return sum(len(UnitTables(folder).unit_names()) for folder in folders)
