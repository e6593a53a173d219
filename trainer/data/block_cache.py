"""Records of an object store, read a block at a time and kept for a while.

A request costs as much time as the transfer of a megabyte, so one request brings the
records that follow each other in a shard. `trainer.data.block_shuffle` shows the
records of a few blocks together.
"""

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import numpy as np

from pipeline.records import INDEX_DTYPE
from pipeline.storage import files
from trainer.data import tfrecords
from trainer.data.tfrecords import ShardFile

INDEX_SUFFIX = ".index"

# Of shards; 160 kB each at 10,000 records.
_N_INDEXES_KEPT = 1024

T = TypeVar("T")


class RecentValues(Generic[T]):
    """The `n_kept` values used last, each made once by whichever thread comes first.

    A copy that is sent to another process starts empty.
    """

    def __init__(self, n_kept: int):
        self._n_kept = n_kept
        self._lock = threading.Lock()
        self._slots: collections.OrderedDict[Hashable, _Slot[T]] = (
            collections.OrderedDict()
        )

    def __reduce__(self):
        return RecentValues, (self._n_kept,)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Returns the value of a key.

        Raises what `make` raises; the next call tries again.
        """
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            if len(self._slots) > self._n_kept:
                self._slots.popitem(last=False)
        with slot.lock:  # others who want this value wait for it
            if not slot.values:
                slot.values.append(make())
            return slot.values[0]


class _Slot(Generic[T]):
    """Room for one value, empty until it is made."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.values: list[T] = []


class BlockReader:
    """Reads records of the shards of a folder.

    Threads may share it; cheap to pickle.
    """

    def __init__(self, folder: str, n_kept: int):
        self._folder = folder
        self._indexes: RecentValues[np.ndarray] = RecentValues(_N_INDEXES_KEPT)
        self._blocks: RecentValues[bytes] = RecentValues(n_kept)

    def record(self, shard: ShardFile, number: int, block: range) -> tuple[bytes, int]:
        """Returns record `number` with its checksums, and its payload's indexed length.

        `block` are the numbers of the records that are read with it. Raises ValueError
        if the index does not fit, OSError if reading fails.
        """
        index = self._indexes.get(shard.name, lambda: self._index(shard.name))
        first, _ = tfrecords.span(shard, *_entry(index, block.start))
        _, last = tfrecords.span(shard, *_entry(index, block.stop - 1))
        offset, length = _entry(index, number)
        start, end = tfrecords.span(shard, offset, length)
        if not first <= start < end <= last:
            raise ValueError(f"{length} bytes at {offset}, expected inside its block")
        data = self._blocks.get(
            (shard.name, block.start),
            lambda: files.read_range(self._path(shard.name), first, last - first),
        )
        record = data[start - first : end - first]
        if len(record) != end - start:
            raise ValueError(f"{len(record)} bytes at {start}, expected {end - start}")
        return record, length

    def _index(self, shard: str) -> np.ndarray:
        data = files.read(self._path(shard + INDEX_SUFFIX))
        return np.frombuffer(data, INDEX_DTYPE)

    def _path(self, name: str) -> str:
        return files.join(self._folder, name)


def _entry(index: np.ndarray, number: int) -> tuple[int, int]:
    """Offset and length of a payload."""
    if number >= len(index):
        expected = f"expected more than {number}"
        raise ValueError(f"{len(index)} records in the index, {expected}")
    offset, length = index[number].tolist()
    return offset, length
