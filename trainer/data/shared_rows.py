"""Memory that loader processes write rows to and the trainer reads them from.

Grain makes new shared memory for every array, and the system clears and maps its pages
each time: half as long as it takes to read and crop the images. Here a process writes
its parts of one batch after another to a few places in turn.
"""

import math
import weakref
from typing import Any

import numpy as np
from grain.multiprocessing import SharedMemoryArray

from trainer.data.batches import Batch

_ALIGNMENT = 64  # bytes
_UNFINISHED = -1


class SharedRows:
    """Places for numbered parts of batches; a part takes the place of an older one.

    A copy that is sent to another process is the same memory.
    """

    def __init__(self, rows: Batch, n_rows: int, n_places: int):
        """Makes places for `n_rows` rows of the kinds and shapes of `rows`."""
        self._n_places = n_places
        self._fields: dict[str, tuple[np.dtype, tuple[int, ...], int]] = {}
        n_bytes = _ALIGNMENT  # of the number
        for name, values in rows.items():
            shape = n_rows, *values.shape[1:]
            self._fields[name] = values.dtype, shape, n_bytes
            size = math.prod(shape) * values.dtype.itemsize
            n_bytes += -(-size // _ALIGNMENT) * _ALIGNMENT
        self._n_bytes = n_bytes
        self._memory = SharedMemoryArray((n_places, n_bytes), np.uint8)
        self._unlink = weakref.finalize(self, self._memory.shm.unlink)

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_memory": self._memory.metadata}
        del state["_unlink"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._memory = SharedMemoryArray.from_metadata(state["_memory"])

    def begin(self, number: int, n_rows: int) -> Batch:
        """Returns the place of a part, to be written and then finished."""
        self._number(number)[0] = _UNFINISHED
        return self._rows(number, n_rows)

    def finish(self, number: int) -> None:
        """Says that a part is written."""
        self._number(number)[0] = number

    def copy(self, number: int, out: Batch) -> None:
        """Copies a part that is written.

        Raises RuntimeError if another one took its place before or meanwhile.
        """
        for name, rows in self._rows(number, len(out["sample_id"])).items():
            out[name][...] = rows
        found = self._number(number)[0]
        if found != number:
            raise RuntimeError(f"part {found} of the batches: expected part {number}")

    def close(self) -> None:
        """Frees the memory once no process uses it."""
        self._unlink()

    def _number(self, number: int) -> np.ndarray:
        return self._place(number)[:8].view(np.int64)

    def _rows(self, number: int, n_rows: int) -> Batch:
        place = self._place(number)
        return {
            name: np.ndarray(shape, dtype, place, offset)[:n_rows]
            for name, (dtype, shape, offset) in self._fields.items()
        }

    def _place(self, number: int) -> np.ndarray:
        memory = np.asarray(self._memory)
        return memory[number % self._n_places]
