"""How fast does `nearest` find its images, against a plain product and top-k?

The plain ones keep all vectors in memory: FAISS's brute force, and NumPy's matrix
product with `argpartition`. Ours is that step of `select` with its reading of tables,
its exact order and its merging of shards, through Beam. All take turns in one process
with all cores, and the best time of each counts. What is found is compared with
products in double precision. Prints JSON.

    python -m benchmarks.retrieval                            # 20,000 x 1,000
    python -m benchmarks.retrieval --pool 200000 --seeds 10000
"""

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable

import apache_beam as beam
import faiss
import numpy as np
import pyarrow as pa
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline import files, indexes, nearest, records
from pipeline.config import CurationConfig, EncoderConfig, ImageTextSource
from pipeline.run_folder import RunFolder
from pipeline.selection_config import NearestToSeeds, SelectionConfig
from pipeline.sources import Unit
from pipeline.verdicts import open_verdicts

_ROWS_PER_SHARD = 10_000  # as img2dataset
_SEEDS_PER_BLOCK = 256  # of a product in memory


def draw(n: int, dim: int, n_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """float16 vectors: anywhere for no cluster, else close to a few directions."""
    vectors = rng.standard_normal((n, dim), dtype=np.float32)
    if n_clusters:
        centres = np.random.default_rng(0).standard_normal((n_clusters, dim))
        vectors = centres[rng.integers(n_clusters, size=n)] + 0.3 * vectors
    return vectors.astype(np.float16)


def write_run(
    root: str, pool: np.ndarray, seeds: np.ndarray, retrieval: NearestToSeeds
) -> RunFolder:
    """A run folder with the tables that `nearest` reads."""
    web, curated = ImageTextSource("web", "web/*"), ImageTextSource("curated", "c/*")
    starts = range(0, len(pool), _ROWS_PER_SHARD)
    units = tuple(Unit(web, f"web/{start:09d}") for start in starts)
    seed_units = (Unit(curated, "c/0"),)
    config = CurationConfig(
        encoder=EncoderConfig("none"),
        selection=SelectionConfig(retrieval=retrieval),
        sources=(web,),
        seed_sets=(curated,),
    )
    run = RunFolder(root, config, units, (), seed_units, {"none": "none"})
    for unit, start in zip(units, starts, strict=True):
        write_tables(run, unit, pool[start : start + _ROWS_PER_SHARD], start)
    write_tables(run, seed_units[0], seeds, len(pool))
    return run


def write_tables(run: RunFolder, unit: Unit, vectors: np.ndarray, first: int) -> None:
    """Pairs whose sample ids are their numbers, and embeddings."""
    numbers = range(first, first + len(vectors))
    pairs = [
        records.Pair(sample_id(i), str(i), "", "", sample_id(i), "jpeg", 1, 1, 1, 0, "")
        for i in numbers
    ]
    embedding = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    run.pairs(unit.source).write(unit.name, files.to_table(pairs, records.Pair))
    table = pa.table({"embedding": embedding})
    run.embeddings(unit.source).write(unit.name, table)


def sample_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


class Ours:
    """The step of `select`; indexes of seeds are built before."""

    def __init__(self, run: RunFolder, retrieval: NearestToSeeds) -> None:
        self._run = run
        self._retrieval = retrieval
        self._sets = indexes.build("seed_sets", run, run.seed_units)
        self._folder = files.join(run.root, "found")

    def __call__(self) -> None:
        """Leaves what each block of seeds has found in files."""
        pipeline = beam.Pipeline(runner=FnApiRunner())
        enter = nearest.EnterNearest(self._run, self._sets, self._retrieval)
        _, entrants = (
            pipeline
            | beam.Create(self._run.units)
            | beam.Map(open_verdicts, self._run)
            | beam.ParDo(enter).with_outputs("entrants", main="verdicts")
        )
        _ = (
            entrants
            | beam.CombinePerKey(nearest.FindWinners())
            | beam.MapTuple(self._write)
        )
        pipeline.run().wait_until_finish()

    def _write(self, key: nearest.BlockKey, won: nearest.Entrants) -> None:
        found = won.sample_id[:, 1].astype(np.int64)
        path = files.join(self._folder, f"{key[1]:09d}")
        files.write(path, found.tobytes())

    def found(self, k: int) -> np.ndarray:
        """Numbers of the k nearest images of each seed, in their order."""
        data = b"".join(map(files.read, files.find(files.join(self._folder, "*"))))
        return np.frombuffer(data, np.int64).reshape(-1, k)


def by_numpy(seeds: np.ndarray, pool: np.ndarray, k: int) -> None:
    for start in range(0, len(seeds), _SEEDS_PER_BLOCK):
        products = seeds[start : start + _SEEDS_PER_BLOCK] @ pool.T
        best = np.argpartition(products, -k, axis=1)[:, -k:]
        np.take_along_axis(products, best, axis=1).argsort(axis=1)


def by_faiss(seeds: np.ndarray, pool: np.ndarray, k: int) -> None:
    faiss.knn(seeds, pool, k, metric=faiss.METRIC_INNER_PRODUCT)


def brute_force(seeds: np.ndarray, pool: np.ndarray, k: int) -> np.ndarray:
    """The k nearest by product in double precision; equal ones by number."""
    columns = pool.T.astype(np.float64)
    return np.concatenate(
        [
            _top(seeds[i : i + _SEEDS_PER_BLOCK].astype(np.float64) @ columns, k)
            for i in range(0, len(seeds), _SEEDS_PER_BLOCK)
        ]
    )


def _top(products: np.ndarray, k: int) -> np.ndarray:
    products = products.clip(-1, 1).astype(np.float32)
    bound = np.partition(products, -k, axis=1)[:, -k]
    rows = []
    for row, least in zip(products, bound, strict=True):
        near = np.flatnonzero(row >= least)
        rows.append(near[np.argsort(-row[near], kind="stable")][:k])
    return np.stack(rows)


def measure(
    pool: np.ndarray, seeds: np.ndarray, k: int, n_repeats: int
) -> dict[str, object]:
    """Lets all take turns, and compares what ours has found."""
    pool_vectors, seed_vectors = (
        indexes.normalised(vectors)[0] for vectors in (pool, seeds)
    )
    retrieval = NearestToSeeds(k)
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(write_run(folder, pool, seeds, retrieval), retrieval)
        contenders: dict[str, Callable[[], None]] = {
            "ours_s": ours,
            "faiss_s": lambda: by_faiss(seed_vectors, pool_vectors, k),
            "numpy_s": lambda: by_numpy(seed_vectors, pool_vectors, k),
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(n_repeats):
            for name, contender in contenders.items():
                times[name].append(_timed(contender))
        found = ours.found(k)
    best = {name: round(min(taken), 2) for name, taken in times.items()}
    ratio = round(best["ours_s"] / min(best["faiss_s"], best["numpy_s"]), 2)
    is_equal = bool((found == brute_force(seed_vectors, pool_vectors, k)).all())
    cores = len(os.sched_getaffinity(0))
    return {**best, "ratio": ratio, "is_equal": is_equal, "cores": cores}


def _timed(contender: Callable[[], None]) -> float:
    start = time.perf_counter()
    contender()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pool", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=1_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--clusters", type=int, default=0, help="0 is none")
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    logging.disable(logging.WARNING)
    rng = np.random.default_rng(1)
    pool = draw(flags.pool, flags.dim, flags.clusters, rng)
    seeds = draw(flags.seeds, flags.dim, flags.clusters, rng)
    print(json.dumps(measure(pool, seeds, flags.k, flags.repeats), indent=2))


if __name__ == "__main__":
    main()
