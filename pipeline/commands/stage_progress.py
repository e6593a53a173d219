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
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.tables import LotTables


def describe(counters: Mapping[str, int]) -> str:
    """One line: what a stage did."""
    if not has_work(counters):
        return "nothing to do"
    return ", ".join(f"{name} {n:,}" for name, n in sorted(counters.items()) if n)


def has_work(counters: Mapping[str, int]) -> bool:
    """Whether a stage had anything to do."""
    done = {name for name, n in counters.items() if n}
    return bool(done - {"lots_skipped", "shards_skipped", "without_url"})


def n_pairs_of(stage: str, counters: Mapping[str, int]) -> int:
    """How many pairs a stage has worked on; `select` counts each under its outcome."""
    if stage == "score":
        return counters.get("pairs", 0)
    return sum(n for name, n in counters.items() if name != "lots_skipped")


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

    An import counts as one: nobody knows before its end which lots it finds texts for.
    """
    if stage == "score":
        sources = {lot.source for lot in run.all_lots}
        pairs = {run.pairs(source).folder for source in sources}
        rows = progress.Rows(pairs, "unreadable")
        to_make = _tables_of(run.all_lots, run.embeddings)
        return progress.Work(len(run.all_lots), lambda: _n_made(to_make), rows)
    if stage == "select":
        to_make = {run.decisions: {lot.name for lot in run.lots}}
        return progress.Work(len(run.lots), lambda: _n_made(to_make))
    if stage == "caption":
        return _captioning_of(run, granularities)
    shards = files.join(shard_format.path(run.root), "manifest.json")
    return progress.Work(1, lambda: int(files.is_file(shards)))


def _captioning_of(
    run: RunFolder, granularities: Sequence[Granularity]
) -> progress.Work:
    imported = [g for g in granularities if g.captioner == "imported"]
    folders = {run.captions(g) for g in granularities if g not in imported}
    n_total = len(run.lots) * len(folders) + len(imported)
    rows = progress.Rows(folders, FAILED)

    def count_done() -> int:
        n_imported = sum(importing.is_complete(run, g) for g in imported)
        return _n_files(folders) + n_imported

    return progress.Work(n_total, count_done, rows)


def _tables_of(
    lots: Iterable[Lot], tables_of: Callable[[ImageTextSource], LotTables]
) -> dict[LotTables, set[str]]:
    """Names of the lots whose tables are to lie there."""
    by_source = itertools.groupby(lots, lambda lot: lot.source)
    names: dict[LotTables, set[str]] = collections.defaultdict(set)
    for source, group in by_source:
        names[tables_of(source)] |= {lot.name for lot in group}
    return names


def _n_made(to_make: Mapping[LotTables, set[str]]) -> int:
    """Tables of what shards held before lie in the same folders."""
    return sum(
        len(names & tables.lot_names(known=names)) for tables, names in to_make.items()
    )


def _n_files(folders: set[str]) -> int:
    return sum(len(LotTables(folder).lot_names()) for folder in folders)
