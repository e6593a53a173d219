"""Records of an object store, read a block at a time and kept for a while.

A request costs as much time as the transfer of a megabyte, so one request brings the
records that follow each other in a shard. `trainer.data.block_shuffle` shows the
records of a few blocks together.
"""

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

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

    def get(self, key: Hashable, make: Callable[[], T], n_uses: int | None = None) -> T:
        """Returns the value of a key, and forgets it when it was used `n_uses` times.

        Raises what `make` raises; the next call tries again.
        """
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            slot.n_uses += 1
            if slot.n_uses == n_uses:
                del self._slots[key]
            elif len(self._slots) > self._n_kept:
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
        self.n_uses = 0


class BlockReader:
    """Reads records of the shards of a folder, and keeps the last `n_kept` blocks.

    The index of a block is read with it, or, with `keeps_indexes`, that of the whole
    shard once: many single records then take a request each. Threads may share it;
    cheap to pickle.
    """

    def __init__(self, folder: str, n_kept: int, *, keeps_indexes: bool):
        self._folder = folder
        self._keeps_indexes = keeps_indexes
        self._indexes: RecentValues[np.ndarray] = RecentValues(_N_INDEXES_KEPT)
        self._blocks: RecentValues[_Block] = RecentValues(n_kept)

    def record(
        self, shard: ShardFile, number: int, block: range, n_uses: int | None = None
    ) -> tuple[bytes, int]:
        """Returns record `number` with its checksums, and its payload's indexed length.

        `block` are the numbers of the records that are read with it. They are forgotten
        after `n_uses` of them. Raises ValueError if the index does not fit, OSError if
        reading fails.
        """
        key = shard.name, block.start, block.stop
        found = self._blocks.get(key, lambda: self._read(shard, block), n_uses)
        return found.record(shard, number)

    def _read(self, shard: ShardFile, block: range) -> "_Block":
        index = self._entries(shard.name, block)
        first, _ = tfrecords.span(shard, *_entry(index, 0))
        _, last = tfrecords.span(shard, *_entry(index, len(block) - 1))
        data = b""
        if first < last:
            data = files.read_range(self._path(shard.name), first, last - first)
        return _Block(block.start, index, first, last, data)

    def _entries(self, shard: str, block: range) -> np.ndarray:
        path = self._path(shard + INDEX_SUFFIX)
        if self._keeps_indexes:
            index = self._indexes.get(shard, lambda: _index(files.read(path)))
            return index[block.start : block.stop]
        size = INDEX_DTYPE.itemsize
        return _index(files.read_range(path, block.start * size, len(block) * size))

    def _path(self, name: str) -> str:
        return files.join(self._folder, name)


class _Block(NamedTuple):
    """Records of a shard that follow each other."""

    first_record: int
    entries: np.ndarray  # of the index
    start: int  # of the data, in the shard
    end: int
    data: bytes

    def record(self, shard: ShardFile, number: int) -> tuple[bytes, int]:
        offset, length = _entry(self.entries, number - self.first_record)
        start, end = tfrecords.span(shard, offset, length)
        if not self.start <= start < end <= self.end:
            raise ValueError(f"{length} bytes at {offset}, expected inside its block")
        record = self.data[start - self.start : end - self.start]
        if len(record) != end - start:
            raise ValueError(f"{len(record)} bytes at {start}, expected {end - start}")
        return record, length


def _index(data: bytes) -> np.ndarray:
    """Entries of an index; what is left of an entry that was cut is no entry."""
    n = len(data) // INDEX_DTYPE.itemsize
    return np.frombuffer(data, INDEX_DTYPE, n)


def _entry(index: np.ndarray, number: int) -> tuple[int, int]:
    """Offset and length of a payload."""
    if number >= len(index):
        expected = f"expected more than {number}"
        raise ValueError(f"{len(index)} records in the index, {expected}")
    offset, length = index[number].tolist()
    return offset, length
