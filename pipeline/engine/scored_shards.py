"""Which lots of a run are scored, as their shards were when they were listed.

In: the lots of a run, the plan, and the tables of `score` that are there. Out: the lots
and shards that lack theirs, and errors that name them.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

from pipeline.config.curation import ImageTextSource
from pipeline.engine.listed_lots import counted, shown
from pipeline.engine.run_folder import LEDGER_NAME, RunFolder
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.json_files import read_json


def changed(run: RunFolder) -> list[str]:
    """Paths of shards that hold something else than when they were scored.

    Not of those that are scored again already.
    """
    source_to_names = _scored_names(run, run.all_lots)
    scored = frozenset[str]().union(*source_to_names.values())
    unscored = {s.uri for lot in unscored_lots(run) for s in lot.shards}
    found = run.plan.changed(run.all_lots)
    uris = {uri for name, uris in found.items() if name in scored for uri in uris}
    return sorted(uris & unscored)


def describe_changes(run: RunFolder) -> Iterator[str]:
    """Yields a line on shards that are not what they were when they were scored."""
    if uris := changed(run):
        is_one = len(uris) == 1
        since = "has changed since it was" if is_one else "have changed since they were"
        yield (
            f"{counted(len(uris))} {since} scored: {shown(uris)};"
            f" `score` and `curate` score {'it' if is_one else 'them'} again"
        )


def expect_scored(
    run: RunFolder, fault: str, advice: str, finished: Collection[str] = ()
) -> None:
    """Raises ValueError unless all lots are scored.

    Args:
      finished: digests of shards of unscored lots that are not at fault.
    """
    missing = [shard for lot in unscored_lots(run) for shard in lot.shards]
    if missing:
        named = [shard.uri for shard in missing if shard.digest not in finished]
        raise ValueError(f"{counted(len(named))} {fault}: {shown(named)}; {advice}")


def expect_decided(run: RunFolder) -> None:
    """Raises ValueError unless there are decisions on what all shards hold now."""
    names = run.decisions.lot_names(known=[lot.name for lot in run.lots])
    missing = [s.uri for u in run.lots if u.name not in names for s in u.shards]
    if missing:
        raise ValueError(
            f"{counted(len(missing))} without decisions on the present contents:"
            f" {shown(missing)}; run `select` first"
        )
    decided = read_json(files.join(run.decisions.folder, LEDGER_NAME))
    if decided is not None and decided.get("pool") != run.pool_fingerprint:
        raise ValueError(
            f"--output {run.root}: expected decisions on the present pool, found those"
            " on another one; run `select` first"
        )


def unscored_lots(run: RunFolder) -> list[Lot]:
    """Lots whose pairs are not in the run folder yet."""
    lots = (*run.lots, *run.evaluation_lots, *run.seed_lots)
    source_to_names = _scored_names(run, lots)
    return [lot for lot in lots if lot.name not in source_to_names[lot.source]]


def are_scored(run: RunFolder, lots: Sequence[Lot]) -> bool:
    source_to_names = _scored_names(run, lots)
    return all(lot.name in source_to_names[lot.source] for lot in lots)


def _scored_names(
    run: RunFolder, lots: Iterable[Lot]
) -> dict[ImageTextSource, frozenset[str]]:
    """Names of tables of pairs. Lists each folder once: looking for each file would
    take its time."""
    lots = list(lots)
    known = [lot.name for lot in lots]
    source_to_tables = {s: run.pairs(s) for s in {lot.source for lot in lots}}
    names = {t: t.lot_names(known=known) for t in set(source_to_tables.values())}
    return {source: names[tables] for source, tables in source_to_tables.items()}
