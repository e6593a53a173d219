"""How much work a stage has, and what its counters say of it.

In: a run and a stage. Out: how many tables it makes and where they appear; lines and
numbers of what it did.
"""

from collections.abc import Mapping, Sequence

from pipeline import files, forecast_costs, importing, run_progress
from pipeline.config import Granularity
from pipeline.records import FinishReason
from pipeline.run_folder import RunFolder
from pipeline.shard_formats import TFRECORD, ShardFormat


def describe(counters: Mapping[str, int]) -> str:
    """One line: what a stage did."""
    if not has_work(counters):
        return "nothing to do"
    return ", ".join(f"{name} {n:,}" for name, n in sorted(counters.items()) if n)


def has_work(counters: Mapping[str, int]) -> bool:
    """Whether a stage had anything to do."""
    done = {name for name, n in counters.items() if n}
    return bool(done - {"units_skipped", "shards_skipped"})


def n_rows(stage: str, counters: Mapping[str, int]) -> int:
    """Pairs or captions that a stage has written."""
    if stage == "select":
        return forecast_costs.n_pairs_of(stage, counters)
    names = {"score": "pairs", "caption": "captions_written"}
    return counters.get(names.get(stage, "samples_written"), 0)


def work_of(
    stage: str,
    run: RunFolder,
    granularities: Sequence[Granularity],
    shard_format: ShardFormat = TFRECORD,
) -> run_progress.Work:
    """How many tables a stage makes, and where they appear.

    An import counts as one: nobody knows before its end which units it finds texts for.
    """
    if stage == "score":
        units = (*run.units, *run.evaluation_units, *run.seed_units)
        folders = {run.embeddings(unit.source).folder for unit in units}
        pairs = {run.pairs(unit.source).folder for unit in units}
        rows = run_progress.Rows(pairs, "error", bool)
        return run_progress.Work(len(units), lambda: _n_files(folders), rows)
    if stage == "select":
        decided = {run.decisions.folder}
        return run_progress.Work(len(run.units), lambda: _n_files(decided))
    if stage == "caption":
        return _captioning_of(run, granularities)
    shards = files.join(run.shards(shard_format), "manifest.json")
    return run_progress.Work(1, lambda: int(files.is_file(shards)))


def _captioning_of(
    run: RunFolder, granularities: Sequence[Granularity]
) -> run_progress.Work:
    imported = [g for g in granularities if g.captioner == "imported"]
    folders = {run.captions(g) for g in granularities if g not in imported}
    n_total = len(run.units) * len(folders) + len(imported)
    rows = run_progress.Rows(folders, "finish_reason", FinishReason.ERROR.__eq__)

    def count_done() -> int:
        n_imported = sum(importing.is_complete(run, g) for g in imported)
        return _n_files(folders) + n_imported

    return run_progress.Work(n_total, count_done, rows)


def _n_files(folders: set[str]) -> int:
    return sum(len(files.listed(f, suffix=".parquet")) for f in folders)
