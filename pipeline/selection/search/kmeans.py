"""K-means of the pool's image embeddings, by cosine, distributed over a sample of it.

In: decisions on pairs. Out: the path of a file of centroids in RUN/clusters, named by a
checksum of its contents. The pool is read once, for a sample that is drawn by sample
ids. The rounds of Lloyd's iteration read the sample, and each records its centroids, so
a run that was killed goes on with the round in which it was. Sums are of integers, so
centroids have the same bytes in any order of work.
"""

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsIter, AsSingleton
from apache_beam.utils.shared import Shared

from pipeline.engine.run_folder import RunFolder
from pipeline.selection.lot_decisions import LotDecisions
from pipeline.selection.search import centroid_files, pool_sample, search_steps
from pipeline.selection.search.centroid_files import Progress, TrainingFiles
from pipeline.selection.search.embeddings import (
    ROWS_PER_SEARCH,
    normalize,
    read_vector_blocks,
)
from pipeline.selection.search.pool_sample import Block, Training
from pipeline.selection.search.reference_sets import ReferenceSet

_FIXED_POINT = 2**24  # a float32 below one has 24 bits; sums of 2^39 vectors fit
_SPLIT = 1 / 1024  # how far the halves of a cluster are moved apart, as FAISS does
_CLUSTERS_PER_SUM = 4096  # 25 MB of sums at 768 dimensions


class TrainCentroids(beam.PTransform):
    """Maps PCollection[LotDecisions] to the path of a file of centroids.

    If the file `record` exists, it names the centroids of an earlier run over the same
    pool, which are used again.
    """

    def __init__(self, run: RunFolder, training: Training, record: str) -> None:
        super().__init__()
        self._run = run
        self._training = training
        self._files = TrainingFiles(record)

    def expand(
        self, decisions: beam.PCollection[LotDecisions]
    ) -> beam.PCollection[str]:
        progress = (
            decisions.pipeline
            | "Name training" >> beam.Create([self._files])
            | "Look for centroids" >> beam.Map(TrainingFiles.find_progress)
        )
        n_pool = AsSingleton(
            decisions
            | "Count images" >> beam.Map(lambda v: len(v.droppable_rows))
            | "Add counts" >> beam.CombineGlobally(sum)
        )
        write = pool_sample.WriteSample(self._run, self._training, self._files)
        sample = (
            decisions
            | "Write sample" >> beam.ParDo(write, n_pool, AsSingleton(progress))
            | "Spread sample" >> beam.Reshuffle()
        )
        centroids = self._choose_first(sample, progress)
        for i in range(1, self._training.n_iterations + 1):
            path = AsSingleton(centroids)
            sums = (
                sample
                | f"Assign images, round {i}"
                >> beam.ParDo(Assign(self._files, i), path, AsSingleton(progress))
                | f"Add images, round {i}" >> beam.CombinePerKey(AddSums())
            )
            centroids = progress | f"Move centroids, round {i}" >> beam.Map(
                move_centroids, path, AsIter(sums), self._files, i
            )
        return progress | "Keep centroids" >> beam.Map(
            keep_centroids, AsSingleton(centroids), self._files
        )

    def _choose_first(
        self, sample: beam.PCollection[str], progress: beam.PCollection[Progress]
    ) -> beam.PCollection[str]:
        n_clusters = self._training.n_clusters
        chosen = (
            sample
            | "Propose centroids"
            >> beam.FlatMap(propose, AsSingleton(progress), self._files, n_clusters)
            | "Choose centroids"
            >> beam.CombineGlobally(ChooseFirst(n_clusters)).without_defaults()
        )
        return progress | "Write first centroids" >> beam.Map(
            write_first, AsIter(chosen), self._files, n_clusters
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Proposals:
    """Proposed first centroids; those with the smallest hashes are chosen."""

    hash: np.ndarray  # float64 [n], ascending
    vector: np.ndarray  # float32 [n, d], of length one


def propose(
    name: str, progress: Progress, training: TrainingFiles, n_clusters: int
) -> Iterator[Proposals]:
    """Proposes images of one block of the sample, unless centroids were chosen."""
    if not progress.n_recorded:
        block = pool_sample.read(training.working_folder, name)
        yield first_proposals([proposals_of(block)], n_clusters)


def proposals_of(block: Block) -> Proposals:
    """All proposals of one block, in its order."""
    is_proposed = ~np.isnan(block.first_hash)
    vectors, _ = normalize(block.embedding[is_proposed])
    return Proposals(block.first_hash[is_proposed], vectors)


def first_proposals(blocks: Sequence[Proposals], n: int) -> Proposals:
    """The `n` proposals with the smallest hashes, by hash; equal ids count once."""
    blocks = [block for block in blocks if len(block.hash)] or list(blocks[:1])
    if not blocks:
        return Proposals(np.empty(0), np.empty((0, 0), np.float32))
    hashes = np.concatenate([block.hash for block in blocks])
    vectors = np.concatenate([block.vector for block in blocks])
    hashes, first = np.unique(hashes, return_index=True)
    return Proposals(hashes[:n], vectors[first[:n]])


class ChooseFirst(beam.CombineFn):
    """The vectors of `first_proposals`, in any order of work."""

    def __init__(self, n_clusters: int) -> None:
        self._n_clusters = n_clusters

    def create_accumulator(self) -> Proposals:
        return first_proposals([], self._n_clusters)

    def add_input(self, accumulator: Proposals, proposals: Proposals) -> Proposals:
        return self.merge_accumulators([accumulator, proposals])

    def merge_accumulators(self, accumulators: Iterable[Proposals]) -> Proposals:
        return first_proposals(list(accumulators), self._n_clusters)

    def extract_output(self, accumulator: Proposals) -> np.ndarray:
        return accumulator.vector


def write_first(
    progress: Progress,
    chosen: Iterable[np.ndarray],
    training: TrainingFiles,
    n_clusters: int,
) -> str:
    """Writes the first centroids, unless there are some; returns their path."""
    if progress.path:
        return progress.path
    vectors = np.concatenate([*chosen] or [np.empty((0, 0), np.float32)])
    if len(vectors) < n_clusters:
        logging.warning("clusters: %d centroids, not %d", len(vectors), n_clusters)
    return training.write(0, vectors)


@dataclasses.dataclass(frozen=True, eq=False)
class Sums:
    """Sums of sampled vectors by cluster."""

    cluster: np.ndarray  # int64 [n], ascending
    count: np.ndarray  # int64 [n]
    total: np.ndarray  # int64 [n, d], of vectors in fixed point


class DoFnWithCentroids(beam.DoFn):
    """A DoFn that opens a file of centroids once per worker, for all threads."""

    def __init__(self) -> None:
        self._shared = Shared()
        self._launcher = search_steps.this_process()

    def centroids(self, path: str) -> ReferenceSet:
        """The centroids, as a reference set without keys."""
        search_steps.limit_threads(self._launcher)
        return self._shared.acquire(
            lambda: centroid_files.open_centroids(path), tag=path
        )


class Assign(DoFnWithCentroids):
    """Adds up one block of the sample by the nearest centroid.

    Yields (range of clusters, sums), or nothing if the round has been recorded.
    """

    def __init__(self, training: TrainingFiles, number: int) -> None:
        super().__init__()
        self._training = training
        self._number = number

    def process(
        self, name: str, path: str, progress: Progress
    ) -> Iterator[tuple[int, Sums]]:
        if self._number < progress.n_recorded:
            return
        block = pool_sample.read(self._training.working_folder, name)
        vectors, _ = normalize(block.embedding[block.is_training])
        cluster = nearest_centroids(self.centroids(path), vectors)
        yield from split_sums(sum_by_cluster(cluster, vectors))


def nearest_centroids(centroids: ReferenceSet, vectors: np.ndarray) -> np.ndarray:
    """The nearest centroid of each unit vector, int64 [n]; of equal ones, the first."""
    starts = range(0, len(vectors), ROWS_PER_SEARCH)
    found = [centroids.nearest(vectors[i : i + ROWS_PER_SEARCH])[1] for i in starts]
    return np.concatenate([np.empty(0, np.int64), *found])


def nearest_to_rows(
    centroids: ReferenceSet,
    run: RunFolder,
    decisions: LotDecisions,
    rows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The rows that have an embedding, and their nearest centroids: int64 [n] each.

    Reads embeddings block by block.
    """
    found = [(rows[:0], np.empty(0, np.int64))]
    for some, vectors in read_vector_blocks(run, decisions, rows):
        found.append((some, nearest_centroids(centroids, vectors)))
    with_embedding, clusters = map(np.concatenate, zip(*found, strict=True))
    return with_embedding, clusters


def sum_by_cluster(cluster: np.ndarray, vectors: np.ndarray) -> Sums:
    """Adds up vectors by cluster, in fixed point."""
    fixed = np.rint(vectors.astype(np.float64) * _FIXED_POINT).astype(np.int64)
    return add_sums([Sums(cluster, np.ones(len(cluster), np.int64), fixed)])


def split_sums(sums: Sums) -> Iterator[tuple[int, Sums]]:
    """Yields (range of clusters, sums of its clusters)."""
    ranges, starts = np.unique(sums.cluster // _CLUSTERS_PER_SUM, return_index=True)
    ends = [*starts[1:], len(sums.cluster)]
    for key, start, end in zip(ranges.tolist(), starts, ends, strict=True):
        mine = slice(start, end)
        yield key, Sums(sums.cluster[mine], sums.count[mine], sums.total[mine])


def add_sums(blocks: Sequence[Sums]) -> Sums:
    """Adds up blocks by cluster, exactly; the sum of no blocks is empty."""
    blocks = [block for block in blocks if len(block.cluster)]
    if not blocks:
        none = np.empty(0, np.int64)
        return Sums(none, none, np.empty((0, 0), np.int64))
    cluster = np.concatenate([block.cluster for block in blocks])
    order = np.argsort(cluster, kind="stable")
    clusters, starts = np.unique(cluster[order], return_index=True)
    count = np.concatenate([block.count for block in blocks])[order]
    total = np.concatenate([block.total for block in blocks])[order]
    return Sums(
        clusters, np.add.reduceat(count, starts), np.add.reduceat(total, starts, axis=0)
    )


class AddSums(beam.CombineFn):
    """`add_sums` in any order, in memory of at most twice the sums of all clusters.

    Blocks wait until they are as large as what has been added up before them.
    """

    def create_accumulator(self) -> list[Sums]:
        return []

    def add_input(self, accumulator: list[Sums], sums: Sums) -> list[Sums]:
        return self.merge_accumulators([accumulator, [sums]])

    def merge_accumulators(self, accumulators: Iterable[list[Sums]]) -> list[Sums]:
        merged: list[Sums] = []
        for sums in itertools.chain.from_iterable(accumulators):
            merged = [*merged, sums]
            n_waiting = sum(len(waiting.cluster) for waiting in merged[1:])
            if n_waiting >= len(merged[0].cluster):
                merged = self.compact(merged)
        return merged

    def compact(self, accumulator: list[Sums]) -> list[Sums]:
        return [add_sums(accumulator)] if accumulator else []

    def extract_output(self, accumulator: list[Sums]) -> Sums:
        return add_sums(accumulator)


def move_centroids(
    progress: Progress,
    path: str,
    range_to_sums: Iterable[tuple[int, Sums]],
    training: TrainingFiles,
    number: int,
) -> str:
    """Writes the centroids that follow from sums, and records them.

    Returns the path of their file, or `path` if the round has been recorded.
    """
    if progress.is_trained or number < progress.n_recorded:
        return path
    sums = add_sums([sums for _, sums in range_to_sums])
    index = centroid_files.open_centroids(path).index
    centroids = index.reconstruct_n(0, index.ntotal)
    moved = new_centroids(centroids, sums) if len(sums.cluster) else centroids
    return training.write(number, moved)


def keep_centroids(progress: Progress, path: str, training: TrainingFiles) -> str:
    """Records the final centroids, unless they are; returns the path of their file."""
    return path if progress.is_trained else training.finish(path)


def new_centroids(centroids: np.ndarray, sums: Sums) -> np.ndarray:
    """The direction of the mean of each cluster: unit vectors, float32 [n, d].

    An empty cluster takes half of the largest one, as in FAISS: both centroids are
    placed next to the old one, and the count is halved.
    """
    count = np.zeros(len(centroids), np.int64)
    count[sums.cluster] = sums.count
    means, has_direction = normalize(sums.total / _FIXED_POINT)
    result = centroids.copy()
    result[sums.cluster[has_direction]] = means[has_direction]
    step = np.where(np.arange(centroids.shape[1]) % 2, -_SPLIT, _SPLIT)
    for empty in np.flatnonzero(count == 0):
        largest = count.argmax()
        if count[largest] < 2:
            break
        halves = result[largest] * np.stack([1 + step, 1 - step])
        result[[empty, largest]], _ = normalize(halves)
        count[empty] = count[largest] // 2
        count[largest] -= count[empty]
    return result
