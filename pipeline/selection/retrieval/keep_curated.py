"""Retrieval of pool images that resemble curated seeds: 2c of `select`."""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence

import apache_beam as beam
import numpy as np

from pipeline.config.selection import (
    NearestToSeeds,
    NearSeeds,
    Retrieval,
    SeededClusters,
)
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection.retrieval import nearest_to_seeds, seeded_clusters
from pipeline.selection.retrieval.top_k import SeedHits
from pipeline.selection.search import search_steps
from pipeline.selection.search.embeddings import count_rows
from pipeline.selection.search.reference_sets import IndexFiles, NearestImages
from pipeline.selection.unit_decisions import UnitDecisions


class KeepCurated(beam.PTransform):
    """Keeps what some seed set wants, and records all sets that want it.

    Maps PCollection[UnitDecisions] to PCollection[UnitDecisions].
    """

    def __init__(
        self,
        run: RunFolder,
        sets: tuple[IndexFiles, ...],
        retrieval: Retrieval | None,
    ) -> None:
        super().__init__()
        self._run = run
        self._sets = sets
        self._retrieval = retrieval

    def expand(self, decisions: beam.PCollection[UnitDecisions]) -> beam.PCollection:
        run, sets = self._run.without_units(), self._sets
        match self._retrieval:
            case None:
                return decisions
            case NearSeeds(min_similarity):
                decide = functools.partial(
                    keep_near_seeds, min_similarity=min_similarity
                )
                return decisions | "Search seeds" >> beam.ParDo(
                    search_steps.Search(run, sets, decide)
                )
            case NearestToSeeds() as retrieval:
                found = nearest_to_seeds.find_nearest(decisions, run, sets, retrieval)
                return _keep_hits(found, "not among the nearest of any seed")
            case SeededClusters() as retrieval:
                found = seeded_clusters.draw(decisions, self._run, sets, retrieval)
                return _keep_hits(found, "not drawn from its cluster")


def is_global(retrieval: Retrieval | None) -> bool:
    """Whether what is kept of a unit hangs on the other units."""
    return isinstance(retrieval, NearestToSeeds | SeededClusters)


def check(run: RunFolder) -> None:
    """Raises ValueError on settings that do not fit the seed sets."""
    retrieval = run.config.selection.retrieval
    if retrieval is None:
        return
    if not run.seed_units:
        raise ValueError(f"retrieval={retrieval}: expected seed sets, or none")
    if isinstance(retrieval, NearestToSeeds):
        names = sorted({unit.source.name for unit in run.seed_units})
        for name, k in retrieval.set_to_k.items():
            if name not in names:
                expected = ", ".join(names)
                raise ValueError(f"set_to_k[{name!r}]={k}: expected one of {expected}")


def check_pool(run: RunFolder) -> None:
    """Raises ValueError if there are fewer images than a seed or k-means asks for."""
    match run.config.selection.retrieval:
        case NearestToSeeds() as retrieval:
            names = {unit.source.name for unit in run.seed_units}
            name, n_asked = "k", max(map(retrieval.k_of, names))
        case SeededClusters(n_clusters):
            name, n_asked = "n_clusters", n_clusters
        case _:
            return
    n_pool = 0
    for unit in run.units:
        if n_pool >= n_asked:
            return
        n_pool += 0 if unit.source.keep_all else count_rows(run, [unit])
    if n_pool < n_asked:
        raise ValueError(f"{name}={n_asked}: expected at most the {n_pool} of the pool")


def keep_near_seeds(
    decisions: UnitDecisions,
    search: Callable[[np.ndarray], NearestImages],
    min_similarity: float,
) -> UnitDecisions:
    """Drops pairs less similar than that to every seed; the nearest one is named."""
    rows = decisions.droppable_rows
    found = search(rows)
    is_wanted = found.similarity >= min_similarity
    fails = np.flatnonzero(~is_wanted.any(axis=0))
    names = [reference_set.name for reference_set in found.sets]
    return decisions.with_seeds(rows, names_of(is_wanted, names)).drop(
        rows[fails],
        DropReason.FAR_FROM_SEEDS,
        value=found.best_similarity[fails],
        threshold=min_similarity,
        detail=found.best_names(fails),
    )


def _keep_hits(
    found: tuple[beam.PCollection, beam.PCollection], detail: str
) -> beam.PCollection[UnitDecisions]:
    decisions, hits = found
    unit_to_decisions = decisions | "Key decisions by unit" >> beam.Map(
        lambda decisions: (decisions.unit.name, decisions)
    )
    return (
        {"decisions": unit_to_decisions, "hits": hits}
        | "Bring wanted images to their unit" >> beam.CoGroupByKey()
        | "Take units" >> beam.Values()
        | "Keep wanted images" >> beam.Map(keep_hits, detail)
    )


def keep_hits(grouped: dict[str, Iterable], detail: str) -> UnitDecisions:
    """Drops the pairs of one unit that no seed set wants."""
    (decisions,) = grouped["decisions"]
    hits: list[SeedHits] = list(grouped["hits"])
    rows = decisions.droppable_rows
    names = sorted({hit.set_name for hit in hits})
    is_wanted = np.zeros((len(names), len(decisions.outcome)), dtype=bool)
    for hit in hits:
        is_wanted[names.index(hit.set_name), hit.row] = True
    is_wanted = is_wanted[:, rows]
    fails = rows[~is_wanted.any(axis=0)]
    return decisions.with_seeds(rows, names_of(is_wanted, names)).drop(
        fails, DropReason.FAR_FROM_SEEDS, detail=detail
    )


def names_of(is_wanted: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """For each column of `is_wanted` [s, n], the names of its true rows as a tuple."""
    wanted = (tuple(itertools.compress(names, column)) for column in is_wanted.T)
    return np.fromiter(wanted, dtype=object, count=is_wanted.shape[1])
