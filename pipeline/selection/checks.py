"""Checks of a recipe against what its run folder holds already, before any work.

They look at tables of `score` that are there; what only `score` can tell is found out
later, by the step that needs it.
"""

from collections.abc import Iterable, Iterator, Sequence

import pyarrow.compute as pc

from pipeline.config.curation import ImageTextSource
from pipeline.engine.run_folder import RunFolder
from pipeline.models import descriptors
from pipeline.selection import balance, safety
from pipeline.selection.retrieval import keep_curated
from pipeline.sources.shards import Unit, shard_name_of
from pipeline.storage import files
from pipeline.storage.tables import UnitTables
from recipes.safe_text import visible

_N_NAMED = 2  # shards in one line
_MAX_CHARS = 120  # of a path in it


def check_folder(run: RunFolder) -> None:
    """Raises ValueError on a folder that holds the scores of other shards alone.

    A source may be added, and a crawl may grow; but with none of its shards it is the
    run of another recipe, whose training shards this one would replace.
    """
    if any(files.is_file(run.pairs(u.source).path(u.name)) for u in run.units[:1]):
        return
    scores = files.join(run.root, "scores")
    found = {
        shard_name_of(name)
        for folder in files.folders(scores)
        if folder.startswith("pairs-")
        for name in UnitTables(files.join(scores, folder)).unit_names()
    }
    found -= {unit.shard_name for unit in (*run.evaluation_units, *run.seed_units)}
    if found and found.isdisjoint(unit.shard_name for unit in run.units):
        raise ValueError(
            f"--output {run.root}: expected a new folder or one with shards of this"
            f" recipe, found {len(found)} scored shards of another, such as"
            f" {min(found)}"
        )


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


def check_scored(run: RunFolder) -> None:
    """Raises ValueError on settings that do not fit the pairs that are scored."""
    safety.check(run)
    if _are_scored(run, run.units):
        keep_curated.check_pool(run)
    selection = run.config.selection
    if selection.evaluation_bounds:
        _check_sets("evaluation_sets", run, run.evaluation_units)
    if selection.retrieval is not None or balance.needs_seeds(selection.balance):
        _check_sets("seed_sets", run, run.seed_units)


def doubts(run: RunFolder) -> Iterator[str]:
    """Yields a line for each kind of image sets that `select` does nothing with."""
    selection = run.config.selection
    if run.evaluation_units and not selection.evaluation_bounds:
        yield "evaluation_sets: not compared, as max_evaluation_similarity=None"
    needs_seeds = balance.needs_seeds(selection.balance)
    if run.seed_units and selection.retrieval is None and not needs_seeds:
        yield "seed_sets: not searched for, as retrieval=None"


def unscored_units(run: RunFolder) -> list[Unit]:
    """Those whose pairs are not in the run folder yet."""
    units = (*run.units, *run.evaluation_units, *run.seed_units)
    source_to_names = _scored_names(run, units)
    return [unit for unit in units if unit.name not in source_to_names[unit.source]]


def _check_sets(role: str, run: RunFolder, units: tuple[Unit, ...]) -> None:
    for name in sorted({unit.source.name for unit in units}):
        mine = [unit for unit in units if unit.source.name == name]
        if _are_scored(run, mine) and not any(_has_image(run, unit) for unit in mine):
            raise ValueError(f"{role}={name}: expected at least one readable image")


def _has_image(run: RunFolder, unit: Unit) -> bool:
    errors = run.pairs(unit.source).read(unit.name, ["error"])["error"]
    return bool(pc.any(pc.equal(errors, "")).as_py())


def _are_scored(run: RunFolder, units: Sequence[Unit]) -> bool:
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


def check(run: RunFolder) -> None:
    """Raises ValueError on settings that cannot be meant."""
    selection = run.config.selection
    if selection.evaluation_bounds and not run.evaluation_units:
        is_short = selection.max_evaluation_similarity is not None
        name = "max_evaluation_similarity" if is_short else "evaluation_duplicates"
        raise ValueError(
            f"{name}={getattr(selection, name)}:"
            " expected evaluation sets to compare with, or none"
        )
    for descriptor in selection.descriptors:
        descriptors.check(descriptor)
    keep_curated.check(run)
    balance.check(run)
    names = set()
    for unit in run.units:
        if unit.name in names:
            raise ValueError(
                f"{unit.source.name}={unit.uri}: expected a shard of one source only"
            )
        names.add(unit.name)
