"""Measures how fast images are compared with sets, against a product and top-k.

`--step nearest` finds the k pool images nearest to each seed; `--step threshold` finds
the image of the set nearest to each pool image, as decontamination does too.

The plain contenders keep all vectors in memory: FAISS's brute force, and NumPy's matrix
product with `argpartition`. Ours is the step of `select` through Beam, which also reads
tables, keeps an exact order and merges shards. All take turns in one process with all
cores, and the best time of each counts. Results are compared with products in double
precision. Prints JSON.

    python -m benchmarks.retrieval                            # 20,000 x 1,000
    python -m benchmarks.retrieval --pool 200000 --seeds 10000
    python -m benchmarks.retrieval --pool 200000 --seeds 10000 --step threshold
"""

import argparse
import functools
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable

import apache_beam as beam
import faiss
import numpy as np
import pyarrow as pa
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline import records
from pipeline.config.curation import CurationConfig, EncoderConfig, ImageTextSource
from pipeline.config.selection import NearestToSeeds, SelectionConfig
from pipeline.engine.lot_plan import single
from pipeline.engine.run_folder import RunFolder
from pipeline.selection.lot_decisions import open_lot
from pipeline.selection.retrieval import keep_curated, nearest_to_seeds
from pipeline.selection.search import (
    index_builder,
    reference_sets,
    search_steps,
    similarity_cache,
)
from pipeline.selection.search.embeddings import count_rows, normalize
from pipeline.sources.shards import Lot, Shard
from pipeline.storage import files
from pipeline.storage.tables import LotTables, to_table

_ROWS_PER_SHARD = 10_000  # as img2dataset
_QUERIES_PER_BLOCK = 256  # of a product in memory


def draw(n: int, dim: int, n_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Draws float16 vectors: anywhere without clusters, else near a few directions."""
    vectors = rng.standard_normal((n, dim), dtype=np.float32)
    if n_clusters:
        centers = np.random.default_rng(0).standard_normal((n_clusters, dim))
        vectors = centers[rng.integers(n_clusters, size=n)] + 0.3 * vectors
    return vectors.astype(np.float16)


def write_run(root: str, pool: np.ndarray, seeds: np.ndarray) -> RunFolder:
    """Writes a run folder with the tables from which `select` reads embeddings."""
    web, curated = ImageTextSource("web", "web/*"), ImageTextSource("curated", "c/*")
    starts = range(0, len(pool), _ROWS_PER_SHARD)
    lots = tuple(single(Shard(web, f"web/{start:09d}")) for start in starts)
    seed_lots = (single(Shard(curated, "c/0")),)
    config = CurationConfig(
        encoder=EncoderConfig("none"),
        selection=SelectionConfig(),
        sources=(web,),
        seed_sets=(curated,),
    )
    run = RunFolder(root, config, lots, (), seed_lots, {"none": "none"})
    for lot, start in zip(lots, starts, strict=True):
        write_tables(run, lot, pool[start : start + _ROWS_PER_SHARD], start)
    write_tables(run, seed_lots[0], seeds, len(pool))
    return run


def write_tables(run: RunFolder, lot: Lot, vectors: np.ndarray, first: int) -> None:
    """Writes pairs whose sample ids are their numbers, and embeddings."""
    numbers = range(first, first + len(vectors))
    pairs = [
        records.Pair(sample_id(i), str(i), "", "", sample_id(i), "jpeg", 1, 1, 1, 0, "")
        for i in numbers
    ]
    embedding = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    run.pairs(lot.source).write(lot.name, to_table(pairs, records.Pair))
    table = pa.table({"embedding": embedding})
    run.embeddings(lot.source).write(lot.name, table)


def sample_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


class Nearest:
    """`nearest`: leaves the results of each block of seeds in files."""

    def __init__(self, run: RunFolder, k: int) -> None:
        self._run = run
        self._retrieval = NearestToSeeds(k)
        self._sets = index_builder.build("seed_sets", run, run.seed_lots)
        self._folder = files.join(run.root, "found")

    def __call__(self) -> None:
        pipeline = beam.Pipeline(runner=FnApiRunner())
        enter = nearest_to_seeds.ProposeNearest(self._run, self._sets, self._retrieval)
        _, entrants = (
            pipeline
            | beam.Create(self._run.lots)
            | beam.Map(open_lot, self._run)
            | beam.ParDo(enter).with_outputs("candidates", main="decisions")
        )
        _ = (
            entrants
            | beam.CombinePerKey(nearest_to_seeds.TopKPerGroup())
            | beam.MapTuple(self._write)
        )
        pipeline.run().wait_until_finish()

    def _write(
        self, key: nearest_to_seeds.BlockKey, won: nearest_to_seeds.Candidates
    ) -> None:
        found = won.sample_id[:, 1].astype(np.int64)
        path = files.join(self._folder, f"{key[1]:09d}")
        files.write(path, found.tobytes())

    def found(self) -> np.ndarray:
        """Returns the numbers of the k nearest images of each seed, in order."""
        data = b"".join(map(files.read, files.find(files.join(self._folder, "*"))))
        return np.frombuffer(data, np.int64).reshape(-1, self._retrieval.k)


class Threshold:
    """`threshold`: leaves the nearest seed of each image in RUN/scores."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._sets = index_builder.build("seed_sets", run, run.seed_lots)

    def __call__(self) -> None:
        shutil.rmtree(self._tables().folder, ignore_errors=True)
        judge = functools.partial(keep_curated.keep_near_seeds, min_similarity=0.5)
        pipeline = beam.Pipeline(runner=FnApiRunner())
        _ = (
            pipeline
            | beam.Create(self._run.lots)
            | beam.Map(open_lot, self._run)
            | beam.ParDo(search_steps.Search(self._run, self._sets, judge))
        )
        pipeline.run().wait_until_finish()

    def _tables(self) -> LotTables:
        (curated,) = map(reference_sets.ReferenceSet.open, self._sets)
        return self._run.similarities(self._run.lots[0].source, curated.fingerprint)

    def found(self) -> np.ndarray:
        """Returns the number of the seed nearest to each image of the pool: [n, 1]."""
        tables, run = self._tables(), self._run
        n_rows = [count_rows(run, [lot]) for lot in run.lots]
        images = [
            similarity_cache.read(tables, lot.name, n)[1]
            for lot, n in zip(run.lots, n_rows, strict=True)
        ]
        return np.concatenate(images)[:, None]


def by_numpy(queries: np.ndarray, vectors: np.ndarray, k: int) -> None:
    for start in range(0, len(queries), _QUERIES_PER_BLOCK):
        products = queries[start : start + _QUERIES_PER_BLOCK] @ vectors.T
        best = np.argpartition(products, -k, axis=1)[:, -k:]
        np.take_along_axis(products, best, axis=1).argsort(axis=1)


def by_faiss(queries: np.ndarray, vectors: np.ndarray, k: int) -> None:
    faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)


def brute_force(queries: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    """Returns the k nearest by double-precision product; ties go by number."""
    columns = vectors.T.astype(np.float64)
    return np.concatenate(
        [
            _top(queries[i : i + _QUERIES_PER_BLOCK].astype(np.float64) @ columns, k)
            for i in range(0, len(queries), _QUERIES_PER_BLOCK)
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
    step: str, pool: np.ndarray, seeds: np.ndarray, k: int, n_repeats: int
) -> dict[str, object]:
    """Lets all contenders take turns, and checks our results."""
    is_nearest = step == "nearest"
    unit_vectors = [normalize(vectors)[0] for vectors in (seeds, pool)]
    queries, vectors = unit_vectors if is_nearest else unit_vectors[::-1]
    k = k if is_nearest else 1
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(folder, pool, seeds)
        ours = Nearest(run, k) if is_nearest else Threshold(run)
        contenders: dict[str, Callable[[], None]] = {
            "ours_s": ours,
            "faiss_s": lambda: by_faiss(queries, vectors, k),
            "numpy_s": lambda: by_numpy(queries, vectors, k),
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(n_repeats):
            for name, contender in contenders.items():
                times[name].append(_timed(contender))
        found = ours.found()
    best = {name: round(min(taken), 2) for name, taken in times.items()}
    ratio = round(best["ours_s"] / min(best["faiss_s"], best["numpy_s"]), 2)
    is_equal = bool((found == brute_force(queries, vectors, k)).all())
    cores = len(os.sched_getaffinity(0))
    return {**best, "ratio": ratio, "is_equal": is_equal, "cores": cores}


def _timed(contender: Callable[[], None]) -> float:
    start = time.perf_counter()
    contender()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", choices=["nearest", "threshold"], default="nearest")
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
    print(
        json.dumps(measure(flags.step, pool, seeds, flags.k, flags.repeats), indent=2)
    )


if __name__ == "__main__":
    main()
