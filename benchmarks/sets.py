"""Measures the building of the index of a large evaluation or seed set.

Draws a set, writes its tables, and builds a flat index and one with inverted lists.
Memory is what the process holds itself; pages of mapped files are not counted, as the
system may take them back. Prints JSON.

    python -m benchmarks.sets --images 200000
"""

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
import threading
import time

import numpy as np

from benchmarks.retrieval import draw, write_run
from pipeline.engine.run_folder import RunFolder
from pipeline.selection.search import index_builder


class PeakMemory(threading.Thread):
    """Looks every 10 ms how much memory the process holds itself."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before_mib = self.peak_mib = _own_mib()
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.wait(0.01):
            self.peak_mib = max(self.peak_mib, _own_mib())

    def stop(self) -> int:
        """Returns how much the peak is above the beginning."""
        self._is_over.set()
        self.join()
        return round(self.peak_mib - self.before_mib)


def _own_mib() -> float:
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith("RssAnon:"))
    return int(line.split()[1]) / 2**10


def draw_run(root: str, n_images: int, dim: int) -> RunFolder:
    rng = np.random.default_rng(1)
    images = draw(n_images, dim, 100, rng)
    return write_run(root, images[:1000], images)


def build(run: RunFolder, max_exact: int | None) -> dict[str, float]:
    memory = PeakMemory()
    memory.start()
    start_s = time.perf_counter(), time.process_time()
    (paths,) = index_builder.build("set", run, run.seed_lots, max_exact=max_exact)
    return {
        "more_peak_mib": memory.stop(),
        "wall_s": round(time.perf_counter() - start_s[0], 1),
        "cpu_s": round(time.process_time() - start_s[1], 1),
        "index_mib": round(os.path.getsize(paths.index_path) / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=256)
    flags = parser.parse_args()
    logging.disable(logging.WARNING)
    found: dict[str, object] = vars(flags)
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            run = pool.apply(draw_run, (folder, flags.images, flags.dim))
        for name, max_exact in (("flat", None), ("lists", 0)):
            with context.Pool(1) as pool:
                found[name] = pool.apply(build, (run, max_exact))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
