"""Sorted tables of digests, made in little memory and searched whole or in parts.

In: digests of 16 bytes, in any order and number. Out: a file of the different ones,
ascending, without a header. A part of it is found by its digests: they are hashes, and
so spread evenly.
"""

import math
import os
import tempfile
from collections.abc import Iterable

import numpy as np

from pipeline.storage import files

DIGEST_BYTES = 16
DIGEST_DTYPE = np.dtype(f"S{DIGEST_BYTES}")  # compares as bytes padded with zeros

ENTRIES_PER_PART = 2**20  # 16 MiB


def write_sorted(blocks: Iterable[np.ndarray], path: str) -> None:
    """Writes the different digests of all blocks.

    Takes the memory of a block, or of 1/256 of the digests, and of a temporary disk
    twice the size of the table.
    """
    with tempfile.TemporaryDirectory() as folder:
        for block in blocks:
            _spill(block, folder)
        whole = os.path.join(folder, "sorted")
        with open(whole, "wb") as file:
            for first_byte in range(256):
                spilled = os.path.join(folder, str(first_byte))
                if os.path.exists(spilled):
                    file.write(_sort(np.fromfile(spilled, DIGEST_DTYPE)).tobytes())
                    os.remove(spilled)
        files.publish(whole, path)


def _spill(block: np.ndarray, folder: str) -> None:
    """Appends digests to the file of their first byte."""
    first_byte = block.view(np.uint8).reshape(-1, DIGEST_BYTES)[:, 0]
    order = np.argsort(first_byte, kind="stable")
    found, starts = np.unique(first_byte[order], return_index=True)
    for key, mine in zip(found.tolist(), np.split(order, starts[1:]), strict=False):
        with open(os.path.join(folder, str(key)), "ab") as file:
            file.write(block[mine].tobytes())


def _sort(digests: np.ndarray) -> np.ndarray:
    """What `np.unique` gives, in half its time: compares pairs of numbers."""
    words = digests.view(">u8").reshape(-1, 2).astype(np.uint64)
    order = np.lexsort(words.T[::-1])  # takes its last key first
    words = words[order]
    is_first = np.append(True, (words[1:] != words[:-1]).any(axis=1))
    return digests[order[is_first[: len(order)]]]


def open_whole(path: str) -> np.ndarray:
    """Maps a table on this machine into memory, shared by all its processes."""
    if not os.path.getsize(path):
        return np.empty(0, DIGEST_DTYPE)
    return np.memmap(path, DIGEST_DTYPE, mode="r")


def count_entries(path: str) -> int:
    """The number of digests in a table."""
    return files.facts(path).n_bytes // DIGEST_BYTES


def count_parts(n_entries: int) -> int:
    """Into how many parts of about 16 MiB a table is divided."""
    return max(1, math.ceil(n_entries / ENTRIES_PER_PART))


def parts_of(digests: np.ndarray, n_parts: int) -> np.ndarray:
    """The part of a table that each digest belongs to: int64 [n]."""
    words = digests.view(">u4").reshape(-1, DIGEST_BYTES // 4)
    return (words[:, 0].astype(np.uint64) * n_parts >> 32).astype(np.int64)


def read_part(path: str, part: int, n_parts: int, *, margin: int = 0) -> np.ndarray:
    """Digests of a table, among them all of one part, by one read as a rule.

    Args:
      margin: digests more on either side; at least eight standard deviations of the
        place where a part begins.
    """
    n_entries = count_entries(path)
    margin = max(margin, 4 * math.isqrt(n_entries) + 8)
    start = max(0, n_entries * part // n_parts - margin)
    end = min(n_entries, n_entries * (part + 1) // n_parts + margin)
    n_bytes = (end - start) * DIGEST_BYTES
    data = files.read_range(path, start * DIGEST_BYTES, n_bytes)
    digests = np.frombuffer(data, DIGEST_DTYPE)
    parts = parts_of(digests[[0, -1]] if len(digests) else digests, n_parts)
    if (start and parts[0] >= part) or (end < n_entries and parts[1] <= part):
        return read_part(path, part, n_parts, margin=2 * margin)
    return digests


def is_in(digests: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Whether each digest is in an ascending table: bool [n]."""
    if not len(table):
        return np.zeros(len(digests), dtype=bool)
    position = np.searchsorted(table, digests)
    return table[position.clip(max=len(table) - 1)] == digests
