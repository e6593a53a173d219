"""Which shards of a run are scored, as they were when they were listed.

In: the units of a run and the tables of `score` that are there. Out: the units that
lack theirs, and errors that name them.
"""

from collections.abc import Iterable, Iterator, Sequence

from pipeline.config.curation import ImageTextSource
from pipeline.engine.run_folder import RunFolder
from pipeline.sources.shards import Unit, shard_name_of
from recipes.safe_text import visible

_N_NAMED = 2  # shards in one line
_MAX_CHARS = 120  # of a path in it


def changed(run: RunFolder) -> tuple[Unit, ...]:
    """Shards that are not what they were when they were scored."""
    source_to_names = _scored_names(run, run.all_units)
    source_to_shards = {
        source: frozenset(map(shard_name_of, names))
        for source, names in source_to_names.items()
    }
    return tuple(
        unit
        for unit in run.all_units
        if unit.name not in source_to_names[unit.source]
        and unit.shard_name in source_to_shards[unit.source]
    )


def describe_changes(run: RunFolder) -> Iterator[str]:
    """Yields a line on shards that are not what they were when they were scored."""
    if units := changed(run):
        is_one = len(units) == 1
        since = "has changed since it was" if is_one else "have changed since they were"
        yield (
            f"{counted(units)} {since} scored: {paths_of(units)};"
            f" `score` and `curate` score {'it' if is_one else 'them'} again"
        )


def expect_scored(run: RunFolder, fault: str, advice: str) -> None:
    """Raises ValueError unless all shards are scored as they were when listed."""
    source_to_names = _scored_names(run, run.all_units)
    missing = [u for u in run.all_units if u.name not in source_to_names[u.source]]
    if missing:
        raise ValueError(f"{counted(missing)} {fault}: {paths_of(missing)}; {advice}")


def expect_decided(run: RunFolder) -> None:
    """Raises ValueError unless there are decisions on what all shards hold now."""
    names = run.decisions.unit_names()
    if missing := [unit for unit in run.units if unit.name not in names]:
        raise ValueError(
            f"{counted(missing)} without decisions on the present contents:"
            f" {paths_of(missing)}; run `select` first"
        )


def counted(units: Sequence[Unit]) -> str:
    return "1 shard" if len(units) == 1 else f"{len(units):,} shards"


def paths_of(units: Sequence[Unit]) -> str:
    """The first of them, in a line."""
    paths = [_shortened(unit.uri) for unit in units[:_N_NAMED]]
    return ", ".join([*paths, "..."] if len(units) > _N_NAMED else paths)


def _shortened(path: str) -> str:
    return visible(path if len(path) <= _MAX_CHARS else f"...{path[-_MAX_CHARS:]}")


def unscored_units(run: RunFolder) -> list[Unit]:
    """Units whose pairs are not in the run folder yet."""
    units = (*run.units, *run.evaluation_units, *run.seed_units)
    source_to_names = _scored_names(run, units)
    return [unit for unit in units if unit.name not in source_to_names[unit.source]]


def are_scored(run: RunFolder, units: Sequence[Unit]) -> bool:
    source_to_names = _scored_names(run, units)
    return all(unit.name in source_to_names[unit.source] for unit in units)


def _scored_names(
    run: RunFolder, units: Iterable[Unit]
) -> dict[ImageTextSource, frozenset[str]]:
    """Names of tables of pairs. Lists each folder once: looking for each file would
    take its time."""
    source_to_tables = {s: run.pairs(s) for s in {unit.source for unit in units}}
    names = {t: t.unit_names() for t in set(source_to_tables.values())}
    return {source: names[tables] for source, tables in source_to_tables.items()}
