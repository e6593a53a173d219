"""Measures the cost of a long drop list, at the launch and in every worker.

Writes a list of addresses and builds its table; `--random` builds a table of
random digests instead, as fast as a disk allows. Then other processes look up pairs,
half of which are listed: one maps the table, one reads it part by part. Prints JSON.

    python -m benchmarks.drop_list --entries 10000000
    python -m benchmarks.drop_list --entries 50000000 --random
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.selection import rights
from pipeline.sources import drop_lists, drop_tables
from pipeline.sources.drop_lists import DropList, Names

N_PAIRS = 10_000
BLOCK = 2**22  # digests


def address(number: int) -> str:
    return f"https://img{number % 997}.example.org/photos/{number:012d}.jpg"


def write_list(path: str, n_entries: int) -> None:
    with open(path, "w") as file:
        file.writelines(f"{address(number)}\n" for number in range(n_entries))


def build(n_entries: int, folder: str) -> dict[str, object]:
    """Builds the table of a list of addresses."""
    write_list(os.path.join(folder, "list.txt"), n_entries)
    found = drop_lists.list_files(os.path.join(folder, "*.txt"), folder)
    before_mib = _peak_mib()
    path, build_s = time_call(lambda: drop_lists.build(found, folder))
    return {
        "path": path,
        "build_s": round(build_s, 1),
        "build_more_peak_mib": round(_peak_mib() - before_mib),
    }


def build_random(n_entries: int, folder: str) -> dict[str, object]:
    """Builds a table of random digests, and of the addresses that are looked up."""
    rng = np.random.default_rng(0)
    path = os.path.join(folder, "random.bin")
    names = Names.of(make_pairs(range(n_entries - N_PAIRS // 2, n_entries)))
    listed = names.take(names.kind == drop_lists.KINDS.index("url")).digest

    def blocks() -> Iterator[np.ndarray]:
        yield listed
        for first in range(len(listed), n_entries, BLOCK):
            n_bytes = 16 * min(BLOCK, n_entries - first)
            yield np.frombuffer(rng.bytes(n_bytes), drop_tables.DIGEST_DTYPE)

    before_mib = _peak_mib()
    _, build_s = time_call(lambda: drop_tables.write_sorted(blocks(), path))
    return {
        "path": path,
        "build_s": round(build_s, 1),
        "build_more_peak_mib": round(_peak_mib() - before_mib),
    }


def make_pairs(numbers: Sequence[int]) -> pa.Table:
    urls = [address(number) for number in numbers]
    hashes = [number.to_bytes(16) for number in numbers]
    return pa.table({"url": urls, "image_hash": hashes, "sample_id": hashes})


def look_up(path: str, numbers: Sequence[int]) -> dict[str, object]:
    """Opens a table and looks pairs up; measures times and private memory."""
    before = _private_mib()
    listed, open_s = time_call(lambda: DropList.open(path))
    pairs = make_pairs(numbers)
    kinds, look_up_s = time_call(lambda: listed.kinds_of(pairs))
    return {
        "open_s": round(open_s, 4),
        "pairs_per_s": round(len(pairs) / look_up_s),
        "kinds": kinds.tolist(),
        "private_mib": round(_private_mib() - before),
    }


def look_up_parts(path: str, numbers: Sequence[int]) -> dict[str, object]:
    """Looks pairs up part by part; measures time and peak memory."""
    pairs = make_pairs(numbers)
    before_mib = _peak_mib()
    n_parts = drop_tables.count_parts(drop_tables.count_entries(path))

    def find() -> np.ndarray:
        names = Names.of(pairs)
        part = drop_tables.parts_of(names.digest, n_parts)
        found = [
            listed
            for key in range(n_parts)
            for _, listed in rights.search_part(
                (key, [("lot", names.take(part == key))]), path, n_parts
            )
        ]
        rows = np.concatenate([names.row for names in found])
        kinds = np.concatenate([names.kind for names in found])
        return drop_lists.first_kinds(Names(rows, kinds, rows), len(pairs))

    kinds, look_up_s = time_call(find)
    return {
        "look_up_s": round(look_up_s, 1),
        "n_parts": n_parts,
        "kinds": kinds.tolist(),
        "more_peak_mib": round(_peak_mib() - before_mib),
    }


def time_call(work: Callable) -> tuple:
    start_s = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start_s


def _private_mib() -> float:
    with open("/proc/self/smaps_rollup") as file:
        lines = (line.split() for line in file if line.startswith("Private_"))
        return sum(int(fields[1]) for fields in lines) / 1024


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def in_new_process(work: Callable, *args: object) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--random", action="store_true")
    flags = parser.parse_args()
    n_entries = flags.entries
    with tempfile.TemporaryDirectory() as folder:
        make = build_random if flags.random else build
        made = in_new_process(make, n_entries, folder)
        path = str(made.pop("path"))
        numbers = range(n_entries - N_PAIRS // 2, n_entries + N_PAIRS // 2)
        mapped = in_new_process(look_up, path, numbers)
        parts = in_new_process(look_up_parts, path, numbers)
        table_mib = round(os.path.getsize(path) / 2**20)
    kinds: list[list[str]] = [found.pop("kinds") for found in (mapped, parts)]
    figures = {
        "entries": n_entries,
        "table_mib": table_mib,
        **made,
        "mapped": mapped,
        "by_parts": parts,
        "n_found": sum(kind == "url" for kind in kinds[0]),
        "is_equal": kinds[0] == kinds[1],
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
