"""K-means of the pool's image embeddings, by cosine, distributed over shards.

In: decisions on pairs. Out: the path of a file of centroids in RUN/clusters, named by a
checksum of its contents. Lloyd's iterations run over a sample of the pool, drawn by
sample ids. Sums are of integers, so centroids have the same bytes in any order of work.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import faiss
import numpy as np
from apache_beam.pvalue import AsSingleton
from apache_beam.utils.shared import Shared

from pipeline.config.duplicates import Cells
from pipeline.config.selection import SeededClusters
from pipeline.engine.run_folder import RunFolder
from pipeline.selection.hashed_random import unit_hashes
from pipeline.selection.search import reference_sets, search_steps
from pipeline.selection.search.embeddings import (
    ROWS_PER_SEARCH,
    normalize,
    read_vectors,
)
from pipeline.selection.search.reference_sets import ReferenceSet
from pipeline.selection.unit_decisions import UnitDecisions, read_rows
from pipeline.storage import files

Training = SeededClusters | Cells  # how many centroids to train, and how

_FIXED_POINT = 2**24  # a float32 below one has 24 bits; sums of 2^39 vectors fit
_N_SPARE_PROPOSALS = 50  # fewer than wanted: once in 10^18 pools
_BLOCKS_IN_MEMORY = 16  # that a worker collects before it adds them up
_SPLIT = 1 / 1024  # how far the halves of a cluster are moved apart, as FAISS does
_N_GROUPS = 16  # of units, each added up by a worker before one finishes


class TrainCentroids(beam.PTransform):
    """Maps PCollection[UnitDecisions] to the path of a file of centroids.

    If the file `record` exists, it names the centroids of an earlier run over the same
    pool, which are used again.
    """

    def __init__(self, run: RunFolder, clusters: Training, record: str) -> None:
        super().__init__()
        self._run = run
        self._clusters = clusters
        self._record = record

    def expand(
        self, decisions: beam.PCollection[UnitDecisions]
    ) -> beam.PCollection[str]:
        if files.is_file(self._record):
            found = read_recorded_centroids(self._record)
            return decisions.pipeline | "Use recorded centroids" >> beam.Create([found])
        folder = files.join(self._run.root, "clusters")
        n_pool = AsSingleton(
            decisions
            | "Count images" >> beam.Map(lambda v: len(v.droppable_rows))
            | "Add counts" >> beam.CombineGlobally(sum).without_defaults()
        )
        centroids = (
            decisions
            | "Propose centroids"
            >> beam.Map(propose, self._run, self._clusters, n_pool)
            | "Choose centroids"
            >> beam.CombineGlobally(
                ChooseFirst(self._clusters.n_clusters)
            ).without_defaults()
            | "Write first centroids" >> beam.Map(write_centroids, folder)
        )
        for i in range(self._clusters.n_iterations):
            path = AsSingleton(centroids)
            centroids = (
                decisions
                | f"Assign images, round {i}"
                >> beam.ParDo(Assign(self._run, self._clusters), path, n_pool)
                | f"Add images, round {i}" >> AddAllSums()
                | f"Move centroids, round {i}" >> beam.Map(move_centroids, path, folder)
            )
        return centroids | "Record centroids" >> beam.Map(
            record_centroids, self._record
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Proposals:
    """Proposed first centroids; those with the smallest hashes are chosen."""

    hash: np.ndarray  # float64 [n], ascending
    vector: np.ndarray  # float32 [n, d], of length one


def propose(
    decisions: UnitDecisions, run: RunFolder, clusters: Training, n_pool: int
) -> Proposals:
    """Proposes images of a unit: over the pool, more than twice the centroids."""
    share = (2 * clusters.n_clusters + _N_SPARE_PROPOSALS) / max(n_pool, 1)
    hashes, vectors = _sample(decisions, run, f"centroid {clusters.rng_seed}", share)
    return first_proposals([Proposals(hashes, vectors)], clusters.n_clusters)


def _sample(
    decisions: UnitDecisions, run: RunFolder, salt: str, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes below `share`, and unit vectors, of droppable pairs of a unit."""
    rows = decisions.droppable_rows
    ids = read_rows(run.pairs(decisions.unit.source), decisions, rows, "sample_id")
    hashes = unit_hashes(ids["sample_id"].to_pylist(), salt)
    chosen = rows[hashes < share]
    found, vectors = read_vectors(run, decisions, chosen)
    return hashes[np.searchsorted(rows, found)], vectors


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
        n_found = len(accumulator.hash)
        if n_found < self._n_clusters:
            wanted = self._n_clusters
            logging.warning("clusters: %d centroids, not %d", n_found, wanted)
        return accumulator.vector


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
        return self._shared.acquire(lambda: open_centroids(path), tag=path)


class Assign(DoFnWithCentroids):
    """Adds up the sampled images of one unit by their nearest centroid.

    Yields (group of the unit, sums), even if no image of the unit is in the sample.
    """

    def __init__(self, run: RunFolder, clusters: Training) -> None:
        super().__init__()
        self._run = run
        self._clusters = clusters

    def process(
        self, decisions: UnitDecisions, path: str, n_pool: int
    ) -> Iterator[tuple[int, Sums]]:
        n_training = self._clusters.n_training * self._clusters.n_clusters
        salt = f"training {self._clusters.rng_seed}"
        share = n_training / max(n_pool, 1)
        _, vectors = _sample(decisions, self._run, salt, share)
        cluster = nearest_centroids(self.centroids(path), vectors)
        yield group_number(decisions.unit.name), sum_by_cluster(cluster, vectors)


def nearest_centroids(centroids: ReferenceSet, vectors: np.ndarray) -> np.ndarray:
    """The nearest centroid of each unit vector, int64 [n]; of equal ones, the first."""
    starts = range(0, len(vectors), ROWS_PER_SEARCH)
    found = [centroids.nearest(vectors[i : i + ROWS_PER_SEARCH])[1] for i in starts]
    return np.concatenate([np.empty(0, np.int64), *found])


def group_number(unit_name: str) -> int:
    """The group of units that a unit is added up with."""
    (share,) = unit_hashes([unit_name.encode()], "group")
    return int(share * _N_GROUPS)


def sum_by_cluster(cluster: np.ndarray, vectors: np.ndarray) -> Sums:
    """Adds up vectors by cluster, in fixed point."""
    fixed = np.rint(vectors.astype(np.float64) * _FIXED_POINT).astype(np.int64)
    return add_sums([Sums(cluster, np.ones(len(cluster), np.int64), fixed)])


def add_sums(blocks: Sequence[Sums]) -> Sums:
    """Adds up blocks by cluster, exactly; there must be a block, perhaps empty."""
    blocks = [block for block in blocks if len(block.cluster)] or list(blocks[:1])
    cluster = np.concatenate([block.cluster for block in blocks])
    order = np.argsort(cluster, kind="stable")
    clusters, starts = np.unique(cluster[order], return_index=True)
    count = np.concatenate([block.count for block in blocks])[order]
    total = np.concatenate([block.total for block in blocks])[order]
    return Sums(
        clusters, np.add.reduceat(count, starts), np.add.reduceat(total, starts, axis=0)
    )


class AddAllSums(beam.PTransform):
    """Maps PCollection[tuple[int, Sums]] to one sum, through the sums of groups.

    `with_fanout` does the same, but deadlocks on FnApiRunner when another reader of the
    same collection waits for the result: that runner ends a Flatten only after all
    readers of its inputs.
    """

    def expand(self, sums: beam.PCollection[tuple[int, Sums]]) -> beam.PCollection:
        return (
            sums
            | "Add by group" >> beam.CombinePerKey(AddSums())
            | "Drop keys of groups" >> beam.Values()
            | "Add groups" >> beam.CombineGlobally(AddSums()).without_defaults()
        )


class AddSums(beam.CombineFn):
    """`add_sums` in any order, with 8 bytes of memory per coordinate."""

    def create_accumulator(self) -> list[Sums]:
        return []

    def add_input(self, accumulator: list[Sums], sums: Sums) -> list[Sums]:
        collected = [*accumulator, sums]
        full = len(collected) >= _BLOCKS_IN_MEMORY
        return self.compact(collected) if full else collected

    def merge_accumulators(self, accumulators: Iterable[list[Sums]]) -> list[Sums]:
        merged: list[Sums] = []
        for accumulator in accumulators:
            merged = self.compact([*merged, *accumulator])
        return merged

    def compact(self, accumulator: list[Sums]) -> list[Sums]:
        return [add_sums(accumulator)] if accumulator else []

    def extract_output(self, accumulator: list[Sums]) -> Sums:
        return add_sums(accumulator)


def move_centroids(sums: Sums, path: str, folder: str) -> str:
    """Writes the centroids that follow from sums; returns the path of their file."""
    if not len(sums.cluster):
        return path
    index = reference_sets.open_index(path)
    return write_centroids(
        new_centroids(index.reconstruct_n(0, index.ntotal), sums), folder
    )


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


def write_centroids(vectors: np.ndarray, folder: str) -> str:
    """Writes an index of vectors, named by its checksum; returns its path."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    data = faiss.serialize_index(index).tobytes()
    path = files.join(folder, f"centroids-{_checksum(data)}.faiss")
    files.write(path, data)
    return path


def open_centroids(path: str) -> ReferenceSet:
    """Maps a file of centroids into memory."""
    return ReferenceSet(
        "clusters", reference_sets.open_index(path), np.empty(0, object)
    )


def record_centroids(path: str, record: str) -> str:
    """Writes the name of the final centroids to `record`; returns their path."""
    checksum = _checksum(files.read(path))
    account = {"file": path.rsplit("/", 1)[-1], "blake2b": checksum}
    files.write(record, json.dumps(account).encode() + b"\n")
    return path


def read_recorded_centroids(record: str) -> str:
    """Returns the path of the centroids that a record names.

    Raises:
      ValueError: if the file has another checksum than the record.
    """
    account = json.loads(files.read(record))
    path = files.join(record.rsplit("/", 1)[0], account["file"])
    found = _checksum(files.read(path))
    if found != account["blake2b"]:
        expected = account["blake2b"]
        raise ValueError(f"{path}: checksum {found}, expected {expected}")
    return path


def _checksum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
