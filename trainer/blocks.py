"""Records of an object store, read a block at a time and kept for a while.

A request costs as long as the transfer of a megabyte, so records that follow each other
in a shard come with one of them; `trainer.order` shows those of a few blocks together.
"""

import collections
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

import numpy as np

from pipeline.records import INDEX_DTYPE
from trainer.folders import Folder

# TFRecord: length (8 bytes) and its checksum (4), then the payload.
HEADER_BYTES = 12

INDEX_SUFFIX = ".index"

# Of shards; 160 kB each at 10,000 records.
_N_INDEXES_KEPT = 1024

T = TypeVar("T")


class Kept(Generic[T]):
    """The `n_kept` values used last, each made once by whichever thread comes first.

    A copy that is sent to another process starts empty.
    """

    def __init__(self, n_kept: int):
        self._n_kept = n_kept
        self._lock = threading.Lock()
        self._values: collections.OrderedDict[Hashable, Future[T]] = (
            collections.OrderedDict()
        )

    def __reduce__(self):
        return Kept, (self._n_kept,)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Raises what `make` raises, after which the next call makes it again."""
        with self._lock:
            is_new = key not in self._values
            future = self._values.setdefault(key, Future())
            self._values.move_to_end(key)
            if len(self._values) > self._n_kept:
                self._values.popitem(last=False)
        if is_new:
            self._make(key, future, make)
        return future.result()

    def _make(self, key: Hashable, future: Future[T], make: Callable[[], T]) -> None:
        try:
            future.set_result(make())
        except BaseException as error:  # whatever it is, all who wait raise it
            with self._lock:
                self._values.pop(key, None)
            future.set_exception(error)


class Blocks:
    """Records of the shards of a folder. Threads may share it; cheap to pickle."""

    def __init__(self, folder: Folder, n_kept: int):
        self._folder = folder
        self._indexes: Kept[np.ndarray] = Kept(_N_INDEXES_KEPT)
        self._blocks: Kept[bytes] = Kept(n_kept)

    def record(self, shard: str, number: int, block: range) -> tuple[bytes, int]:
        """Header and payload of record `number`, and the payload's length by the index.

        `block` are the numbers of the records of the shard that are read with it.
        Raises ValueError when the index does not fit, OSError when reading fails.
        """
        index = self._indexes.get(shard, lambda: self._index(shard))
        entries = index[block.start : block.stop]
        start = int(entries["offset"][0]) - HEADER_BYTES
        data = self._blocks.get(
            (shard, block.start), lambda: self._block(shard, entries)
        )
        offset, length = (int(value) for value in index[number])
        first = offset - HEADER_BYTES - start
        record = data[max(first, 0) : offset + length - start]
        if first < 0 or len(record) != HEADER_BYTES + length:
            raise ValueError(f"{length} bytes at {offset}, expected inside its block")
        return record, length

    def _index(self, shard: str) -> np.ndarray:
        return np.frombuffer(self._folder.read(shard + INDEX_SUFFIX), INDEX_DTYPE)

    def _block(self, shard: str, entries: np.ndarray) -> bytes:
        start = int(entries["offset"][0]) - HEADER_BYTES
        end = int(entries["offset"][-1] + entries["length"][-1])
        if not 0 <= start < end:
            raise ValueError(f"a block from byte {start} to {end}, expected one ahead")
        return self._folder.read(shard, start, end - start)
