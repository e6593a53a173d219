"""Retrieval: keeps the images of the pool that resemble curated seeds.

In: decisions and the indexes of the seed sets. Out: the decisions, in which each kept
pair names the seed sets that it is a hit of. The mode is a value of the recipe.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

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
from pipeline.selection.lot_decisions import LotDecisions
from pipeline.selection.lot_join import join_by_lot
from pipeline.selection.retrieval import nearest_to_seeds, seeded_clusters
from pipeline.selection.retrieval.top_k import SeedHits
from pipeline.selection.search import search_steps
from pipeline.selection.search.embeddings import count_rows
from pipeline.selection.search.reference_sets import IndexFiles, NearestImages


class KeepCurated(beam.PTransform):
    """Keeps the hits of some seed set, and records all sets that they are hits of.

    Maps PCollection[LotDecisions] to PCollection[LotDecisions].
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

    def expand(self, decisions: beam.PCollection[LotDecisions]) -> beam.PCollection:
        run, sets = self._run.without_lots(), self._sets
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
    """Whether the images kept of a lot depend on the other lots."""
    return isinstance(retrieval, NearestToSeeds | SeededClusters)


def check(run: RunFolder) -> None:
    """Raises ValueError on settings that do not fit the seed sets."""
    retrieval = run.config.selection.retrieval
    if retrieval is None:
        return
    if not run.seed_lots:
        expected = "seed sets, --seeds NAME=GLOB, or --set selection.retrieval=null"
        raise ValueError(f"retrieval={retrieval}: expected {expected}")
    if isinstance(retrieval, NearestToSeeds):
        names = sorted({lot.source.name for lot in run.seed_lots})
        for name, k in retrieval.set_to_k.items():
            if name not in names:
                expected = ", ".join(names)
                raise ValueError(f"set_to_k[{name!r}]={k}: expected one of {expected}")


def check_pool(run: RunFolder) -> None:
    """Raises ValueError if the pool has fewer images than k or k-means needs."""
    match run.config.selection.retrieval:
        case NearestToSeeds() as retrieval:
            names = {lot.source.name for lot in run.seed_lots}
            name, n_asked = "k", max(map(retrieval.k_of, names))
        case SeededClusters(n_clusters):
            name, n_asked = "n_clusters", n_clusters
        case _:
            return
    n_pool = 0
    for lot in run.lots:
        if n_pool >= n_asked:
            return
        n_pool += 0 if lot.source.keep_all else count_rows(run, [lot])
    if n_pool < n_asked:
        raise ValueError(f"{name}={n_asked}: expected at most the {n_pool} of the pool")


def keep_near_seeds(
    decisions: LotDecisions,
    search: Callable[[np.ndarray], NearestImages],
    min_similarity: float,
) -> LotDecisions:
    """Drops pairs whose cosine with every seed is below `min_similarity`.

    The detail of a drop is the nearest seed.
    """
    rows = decisions.droppable_rows
    found = search(rows)
    is_hit = found.similarity >= min_similarity
    fails = np.flatnonzero(~is_hit.any(axis=0))
    names = [reference_set.name for reference_set in found.sets]
    return decisions.with_seeds(rows, names_of(is_hit, names)).drop(
        rows[fails],
        DropReason.FAR_FROM_SEEDS,
        value=found.best_similarity[fails],
        threshold=min_similarity,
        detail=found.best_names(fails),
    )


def _keep_hits(
    found: tuple[beam.PCollection, beam.PCollection], detail: str
) -> beam.PCollection[LotDecisions]:
    joined = join_by_lot(*found, "hits")
    return joined | "Keep hits" >> beam.MapTuple(
        functools.partial(keep_hits, detail=detail)
    )


def keep_hits(
    decisions: LotDecisions, hits: Sequence[SeedHits], detail: str
) -> LotDecisions:
    """Drops the pairs of one lot that are a hit of no seed set."""
    rows = decisions.droppable_rows
    names = sorted({hit.set_name for hit in hits})
    is_hit = np.zeros((len(names), len(decisions.outcome)), dtype=bool)
    for hit in hits:
        is_hit[names.index(hit.set_name), hit.row] = True
    is_hit = is_hit[:, rows]
    fails = rows[~is_hit.any(axis=0)]
    return decisions.with_seeds(rows, names_of(is_hit, names)).drop(
        fails, DropReason.FAR_FROM_SEEDS, detail=detail
    )


def names_of(is_hit: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """For each column of `is_hit` [s, n], the names of its true rows as a tuple."""
    hits = (tuple(itertools.compress(names, column)) for column in is_hit.T)
    return np.fromiter(hits, dtype=object, count=is_hit.shape[1])
