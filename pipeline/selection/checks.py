"""Checks of a recipe against what its run folder holds already, before any work.

They read the tables that `score` has written so far. What is not scored yet is checked
later, by the step that needs it.
"""

from collections.abc import Iterator

import pyarrow.compute as pc

from pipeline.config.selection import needs_seeds
from pipeline.engine.run_folder import RunFolder
from pipeline.engine.scored_shards import are_scored
from pipeline.models import descriptors
from pipeline.selection import balance, ledger, safety
from pipeline.selection.retrieval import keep_curated
from pipeline.sources.shards import Lot


def check(run: RunFolder) -> None:
    """Raises ValueError on settings that fit neither the sets nor the scored pairs.

    The tables of a run whose pairs are all decided on are not read again.
    """
    check_settings(run)
    if not ledger.is_complete(run):
        _check_scored(run)


def check_settings(run: RunFolder) -> None:
    """Raises ValueError on settings that contradict one another or the sets."""
    selection = run.config.selection
    if selection.evaluation_bounds and not run.evaluation_lots:
        is_short = selection.max_evaluation_similarity is not None
        name = "max_evaluation_similarity" if is_short else "evaluation_duplicates"
        raise ValueError(
            f"{name}={getattr(selection, name)}: expected evaluation sets,"
            f" --eval NAME=GLOB, or --set selection.{name}=null"
        )
    for descriptor in selection.descriptors:
        descriptors.check(descriptor)
    keep_curated.check(run)
    balance.check(run)


def _check_scored(run: RunFolder) -> None:
    """Raises ValueError on settings that do not fit the scored pairs."""
    safety.check(run)
    if are_scored(run, run.lots):
        keep_curated.check_pool(run)
    selection = run.config.selection
    if selection.evaluation_bounds:
        _check_sets("evaluation_sets", run, run.evaluation_lots)
    if selection.retrieval is not None or needs_seeds(selection.balance):
        _check_sets("seed_sets", run, run.seed_lots)


def doubts(run: RunFolder) -> Iterator[str]:
    """Yields a line for each role of image sets that `select` does not use."""
    selection = run.config.selection
    if run.evaluation_lots and not selection.evaluation_bounds:
        yield "evaluation_sets: not compared, as max_evaluation_similarity=None"
    is_searched = selection.retrieval is not None or needs_seeds(selection.balance)
    if run.seed_lots and not is_searched:
        yield "seed_sets: not searched for, as retrieval=None"


def _check_sets(role: str, run: RunFolder, lots: tuple[Lot, ...]) -> None:
    for name in sorted({lot.source.name for lot in lots}):
        mine = [lot for lot in lots if lot.source.name == name]
        if are_scored(run, mine) and not any(_has_image(run, lot) for lot in mine):
            raise ValueError(f"{role}={name}: expected at least one readable image")


def _has_image(run: RunFolder, lot: Lot) -> bool:
    errors = run.pairs(lot.source).read(lot.name, ["error"])["error"]
    return bool(pc.any(pc.equal(errors, "")).as_py())
