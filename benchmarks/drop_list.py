"""Measures the cost of a long drop list, at the launch and in every worker.

Writes a list of addresses, checks it and builds the table. Then another process opens
the table, as a worker does, and looks up pairs, half of which are listed. Prints JSON.

    python -m benchmarks.drop_list --entries 10000000
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable

import pyarrow as pa

from pipeline.sources import drop_lists
from pipeline.sources.drop_lists import DropList

_N_PAIRS = 10_000


def address(number: int) -> str:
    return f"https://img{number % 997}.example.org/photos/{number:012d}.jpg"


def write_list(path: str, n_entries: int) -> None:
    with open(path, "w") as file:
        file.writelines(f"{address(number)}\n" for number in range(n_entries))


def look_up(path: str, numbers: Iterable[int]) -> dict[str, float]:
    """Opens a table and looks pairs up; measures times and private memory."""
    before = _private_mib()
    listed, open_s = time_call(lambda: DropList.open(path))
    urls = [address(number) for number in numbers]
    hashes = [b"h" * 16] * len(urls)
    pairs = pa.table({"url": urls, "image_hash": hashes, "sample_id": hashes})
    kinds, look_up_s = time_call(lambda: listed.kinds_of(pairs))
    return {
        "open_s": round(open_s, 4),
        "pairs_per_s": round(len(urls) / look_up_s),
        "n_found": int((kinds == "url").sum()),
        "private_mib": round(_private_mib() - before),
    }


def time_call(work: Callable) -> tuple:
    start_s = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start_s


def _private_mib() -> float:
    with open("/proc/self/smaps_rollup") as file:
        lines = (line.split() for line in file if line.startswith("Private_"))
        return sum(int(fields[1]) for fields in lines) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    n_entries = parser.parse_args().entries
    with tempfile.TemporaryDirectory() as folder:
        write_list(os.path.join(folder, "list.txt"), n_entries)
        found = drop_lists.list_files(os.path.join(folder, "*.txt"))
        _, check_s = time_call(lambda: drop_lists.check(found))
        path, build_s = time_call(lambda: drop_lists.build(found, folder))
        numbers = range(n_entries - _N_PAIRS // 2, n_entries + _N_PAIRS // 2)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            worker = pool.apply(look_up, (path, numbers))
        figures = {
            "entries": n_entries,
            "check_s": round(check_s, 1),
            "build_s": round(build_s, 1),
            "table_mib": round(os.path.getsize(path) / 2**20),
        }
    print(json.dumps(figures | worker, indent=2))


if __name__ == "__main__":
    main()
