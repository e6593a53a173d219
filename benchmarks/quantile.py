"""Measures the cost of the exact cut of `KeepFraction` on a large pool.

Draws scores shard by shard, so that only one shard's scores are in memory, and lets
Beam find the cut as `select` does. Then another process cuts all of the same scores at
once with `numpy.partition`. Prints JSON: times, and the growth of each process's peak
memory.

    python -m benchmarks.quantile --rows 100000000
"""

import argparse
import json
import logging
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable

import apache_beam as beam
import numpy as np
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline.selection import quantiles
from pipeline.storage import files

_ROWS_PER_SHARD = 100_000
_KEEP_FRACTION = 0.3  # DataComp


def draw(shard: int) -> tuple[str, np.ndarray]:
    """Draws scores like SigLIP's: around 0.1, one in a hundred missing."""
    rng = np.random.default_rng(shard)
    scores = rng.normal(0.1, 0.05, _ROWS_PER_SHARD).astype(np.float32)
    scores[rng.integers(100, size=_ROWS_PER_SHARD) == 0] = np.nan
    return "pool", scores


def by_beam(n_shards: int) -> float:
    """Returns the cut that `select` would find."""
    with tempfile.TemporaryDirectory() as folder:
        path = files.join(folder, "cut")
        with beam.Pipeline(FnApiRunner()) as pipeline:
            _ = (
                pipeline
                | beam.Create(range(n_shards))
                | quantiles.FindCuts(_KEEP_FRACTION, draw)
                | beam.MapTuple(lambda _, cut: files.write(path, _bytes_of(cut.score)))
            )
        return float(np.frombuffer(files.read(path))[0])


def _bytes_of(number: float) -> bytes:
    return np.float64(number).tobytes()


def by_numpy(n_shards: int) -> float:
    """Returns the cut, with all scores in memory."""
    scores = np.concatenate([draw(shard)[1] for shard in range(n_shards)])
    n_keep = -(-len(scores) * 3 // 10)
    measured = scores[~np.isnan(scores)]
    return float(np.partition(measured, -n_keep)[-n_keep])


def measure(find: Callable[[int], float], n_shards: int) -> dict[str, float]:
    """Returns time, growth of memory and the cut, in the caller's process."""
    before, start_s = _peak_mib(), time.perf_counter()
    cut = find(n_shards)
    time_s = time.perf_counter() - start_s
    return {
        "time_s": round(time_s, 1),
        "mib": round(_peak_mib() - before),
        "cut": cut,
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measure_apart(find: Callable[[int], float], n_shards: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(measure, (find, n_shards))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    n_shards = parser.parse_args().rows // _ROWS_PER_SHARD
    logging.disable(logging.WARNING)
    found = {
        "beam": _measure_apart(by_beam, n_shards),
        "numpy": _measure_apart(by_numpy, n_shards),
    }
    is_equal = found["beam"]["cut"] == found["numpy"]["cut"]
    rows = n_shards * _ROWS_PER_SHARD
    print(json.dumps({"rows": rows, "is_equal": is_equal, **found}, indent=2))


if __name__ == "__main__":
    main()
