"""Measures the training of centroids: time, memory and how often the pool is read.

Draws a pool of vectors, writes its tables, and trains centroids through Beam in one
process. Prints JSON.

    python -m benchmarks.clusters --pool 200000 --clusters 1000
"""

import argparse
import json
import logging
import multiprocessing
import resource
import tempfile
import time

import apache_beam as beam
import numpy as np
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from benchmarks.retrieval import draw, write_run
from pipeline.config.selection import SeededClusters
from pipeline.engine.run_folder import RunFolder
from pipeline.selection.lot_decisions import open_lot
from pipeline.selection.search import embeddings, kmeans
from pipeline.storage import files


def train(run: RunFolder, clusters: SeededClusters, record: str) -> None:
    workers = run.without_lots()
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = (
            pipeline
            | beam.Create(run.lots)
            | beam.Map(open_lot, workers)
            | kmeans.TrainCentroids(workers, clusters, record)
        )


def draw_run(root: str, n_pool: int, dim: int) -> RunFolder:
    pool = draw(n_pool, dim, 100, np.random.default_rng(1))
    return write_run(root, pool, pool[:10])


def measure(run: RunFolder, clusters: SeededClusters) -> dict[str, object]:
    opened = []
    open_table = embeddings.open_table

    def count_and_open(path: str):
        opened.append(path)
        return open_table(path)

    embeddings.open_table = count_and_open
    record = files.join(run.root, "clusters", "record.json")
    before_mib, before_s = _peak_mib(), (time.perf_counter(), time.process_time())
    train(run, clusters, record)
    after_s = time.perf_counter(), time.process_time()
    wall_s, cpu_s = (after - b for after, b in zip(after_s, before_s, strict=True))
    return {
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "reads_of_pool": len(opened) / len(run.lots),
        "more_peak_mib": round(_peak_mib() - before_mib),
        "blake2b": json.loads(files.read(record))["blake2b"],
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pool", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--clusters", type=int, default=200)
    parser.add_argument("--training", type=int, default=32, help="images a cluster")
    flags = parser.parse_args()
    logging.disable(logging.WARNING)
    clusters = SeededClusters(n_clusters=flags.clusters, n_training=flags.training)
    with tempfile.TemporaryDirectory() as folder:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            run = pool.apply(draw_run, (folder, flags.pool, flags.dim))
        print(json.dumps(vars(flags) | measure(run, clusters), indent=2))


if __name__ == "__main__":
    main()
