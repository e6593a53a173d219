"""Retrieval of images of the pool from the clusters that hold enough curated seeds.

In: decisions, and the indexes of the seed sets. Out: the decisions, and the hits of
each set: a sample of the clusters of k-means in which `min_seeds` of its seeds lie.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsDict, AsSingleton, TaggedOutput

from pipeline.config.selection import SeededClusters
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection.hashed_random import unit_hashes
from pipeline.selection.lot_decisions import LotDecisions, read_rows, to_words
from pipeline.selection.retrieval.nearest_to_seeds import drop_without_embedding
from pipeline.selection.retrieval.top_k import (
    Candidates,
    TopKPerGroup,
    hits_by_lot,
    top_k,
)
from pipeline.selection.search import kmeans
from pipeline.selection.search.embeddings import ROWS_PER_SEARCH
from pipeline.selection.search.reference_sets import IndexFiles, ReferenceSet
from pipeline.storage import files

CLUSTERS_PER_BLOCK = 64  # in one key of Beam: at most 64 * `max_per_cluster` images


# Seed set to its number of seeds in each cluster.
SetToCounts = Mapping[str, np.ndarray]


def draw(
    decisions: beam.PCollection[LotDecisions],
    run: RunFolder,
    sets: tuple[IndexFiles, ...],
    clusters: SeededClusters,
) -> tuple[beam.PCollection, beam.PCollection]:
    """Returns the decisions, and the hits of the sets as (lot name, SeedHits).

    Images of clusters with few seeds, and images without an embedding, are dropped.
    `run` must list its lots, which enter the name of the file of centroids.
    """
    record, run = record_path(run, clusters), run.without_lots()
    path = AsSingleton(
        decisions | "Train centroids" >> kmeans.TrainCentroids(run, clusters, record)
    )
    set_to_counts = AsDict(
        decisions.pipeline
        | "List seed sets" >> beam.Create(sets)
        | "Count seeds" >> beam.ParDo(CountSeeds(), path)
    )
    decided, candidates = decisions | "Keep seeded clusters" >> beam.ParDo(
        ProposeFromClusters(run, clusters), path, set_to_counts
    ).with_outputs("candidates", main="decisions")
    hits = (
        candidates
        | "Draw from clusters" >> beam.CombinePerKey(TopKPerGroup())
        | "Take drawn images" >> beam.Values()
        | "Propose for sets" >> beam.FlatMap(propose_for_sets, clusters, set_to_counts)
        | "Draw for sets" >> beam.CombinePerKey(TopKPerGroup())
        | "Name lots of drawn images" >> beam.FlatMapTuple(hits_by_lot)
    )
    return decided, hits


def record_path(run: RunFolder, clusters: SeededClusters) -> str:
    """The path of the record of the centroids, named by what determines them.

    Neither the seeds nor the number of images to draw enter it.
    """
    training = dataclasses.replace(
        clusters, min_seeds=1, max_per_cluster=1, max_per_set=1
    )
    selection = dataclasses.replace(run.config.selection, retrieval=training)
    config = dataclasses.replace(run.config, selection=selection)
    pool = dataclasses.replace(run, config=config, seed_lots=())
    name = f"{pool.pool_fingerprint}.json"
    return files.join(run.root, "clusters", name)


class CountSeeds(kmeans.DoFnWithCentroids):
    """Yields (name of a set, its number of seeds in each cluster)."""

    def process(self, paths: IndexFiles, path: str) -> Iterator[tuple[str, np.ndarray]]:
        seeds = ReferenceSet.open(paths).index
        centroids = self.centroids(path)
        counts = np.zeros(centroids.index.ntotal, np.int64)
        for first in range(0, seeds.ntotal, ROWS_PER_SEARCH):
            n_seeds = min(ROWS_PER_SEARCH, seeds.ntotal - first)
            counts += n_by_cluster(centroids, seeds.reconstruct_n(first, n_seeds))
        yield paths.set_name, counts


def n_by_cluster(centroids: ReferenceSet, vectors: np.ndarray) -> np.ndarray:
    """The number of vectors nearest to each centroid: int64 [n_clusters]."""
    n_clusters = centroids.index.ntotal
    if not n_clusters:
        return np.zeros(0, np.int64)
    return np.bincount(
        kmeans.nearest_centroids(centroids, vectors), minlength=n_clusters
    )


class ProposeFromClusters(kmeans.DoFnWithCentroids):
    """Proposes images of one lot for the samples of their clusters."""

    def __init__(self, run: RunFolder, clusters: SeededClusters) -> None:
        super().__init__()
        self._run = run
        self._clusters = clusters

    def process(
        self, decisions: LotDecisions, path: str, set_to_counts: SetToCounts
    ) -> Iterator[
        LotDecisions | TaggedOutput[Literal["candidates"], tuple[int, Candidates]]
    ]:
        rows, cluster = kmeans.nearest_to_rows(
            self.centroids(path), self._run, decisions, decisions.droppable_rows
        )
        decisions = drop_without_embedding(decisions, rows)
        n_seeds = np.max(list(set_to_counts.values()), axis=0)[cluster]
        is_seeded = n_seeds >= self._clusters.min_seeds
        yield decisions.drop(
            rows[~is_seeded],
            DropReason.FAR_FROM_SEEDS,
            value=n_seeds[~is_seeded],
            threshold=self._clusters.min_seeds,
            detail=[f"seeds in cluster {c}" for c in cluster[~is_seeded]],
        )
        if not is_seeded.any():
            return
        candidates = self._propose(decisions, rows[is_seeded], cluster[is_seeded])
        block = candidates.group // CLUSTERS_PER_BLOCK
        for key in np.unique(block).tolist():
            mine = candidates.take(np.flatnonzero(block == key))
            yield TaggedOutput("candidates", (key, top_k([mine])))

    def _propose(
        self, decisions: LotDecisions, rows: np.ndarray, cluster: np.ndarray
    ) -> Candidates:
        tables = self._run.pairs(decisions.lot.source)
        ids = read_rows(tables, decisions, rows, "sample_id")["sample_id"]
        salt = f"cluster {self._clusters.rng_seed}"
        return Candidates.of_lot(
            decisions.lot.name,
            self._clusters.max_per_cluster,
            group=cluster,
            rank=unit_hashes(ids.to_pylist(), salt),
            sample_id=to_words(ids),
            row=rows,
        )


def propose_for_sets(
    drawn: Candidates, clusters: SeededClusters, set_to_counts: SetToCounts
) -> Iterator[tuple[str, Candidates]]:
    """Yields (set name, images of its clusters), of which the set keeps some."""
    for set_name, counts in sorted(set_to_counts.items()):
        mine = np.flatnonzero(counts[drawn.group] >= clusters.min_seeds)
        if len(mine):
            candidates = drawn.take(mine)
            yield (
                set_name,
                dataclasses.replace(
                    candidates,
                    n_places=clusters.max_per_set,
                    group=np.zeros_like(candidates.group),
                ),
            )
