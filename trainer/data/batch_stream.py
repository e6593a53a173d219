"""Batches without end, made by threads or processes of this host.

A batch is made in parts, one by each loader process, which has the same rows of every
batch. Hosts and processes thereby have their own streams of `trainer.data.row_order`,
and read the blocks of these alone.
"""

import dataclasses
import functools
import logging
import math
import sys
from collections.abc import Mapping
from typing import Any

import grain
from absl import flags

from trainer.config import RunConfig
from trainer.data.batches import Batch, ViewSample
from trainer.data.row_order import RowOrder, n_streams
from trainer.data.shared_rows import SharedRows

# Parts of a process beside those in work: in its hand and its queue, in hand and queue
# of the thread that Grain reads each process with, being copied, and one to spare.
_N_WAITING = 6


@dataclasses.dataclass(frozen=True)
class BatchParts:
    """Makes a host's rows of each batch, in `n_parts` parts.

    Number i is part i mod `n_parts` of batch i div `n_parts`. Of the host's rows,
    `shard_index`, `shard_index + shard_count` and so on, it has every `n_parts`-th.
    """

    view: ViewSample
    order: RowOrder
    n_parts: int
    shard_index: int
    shard_count: int

    @property
    def n_rows(self) -> int:
        """The number of rows of a batch, of all hosts together."""
        return self.view.config.batch_size

    def __call__(self, number: int) -> Batch:
        batch = self.view.empty_rows(len(self._rows(number)))
        self.fill(batch, number)
        return batch

    def fill(self, batch: Batch, number: int) -> None:
        """Writes a part into a batch of its size."""
        first = number // self.n_parts * self.n_rows
        rows = [self.order(first + row) for row in self._rows(number)]
        self.view.fill(batch, rows)

    def fill_shared(self, number: int, shared: SharedRows) -> int:
        """Writes a part to its place, and returns its number."""
        batch = shared.begin(number, len(self._rows(number)))
        self.fill(batch, number)
        shared.finish(number)
        return number

    def _rows(self, number: int) -> range:
        rows = range(self.shard_index, self.n_rows, self.shard_count)
        return rows[number % self.n_parts :: self.n_parts]


def make_parts(
    view: ViewSample,
    n_threads: int,
    n_parts: int = 1,
    shard_index: int = 0,
    shard_count: int = 1,
) -> BatchParts:
    """Returns what makes a host's rows, and keeps the blocks of one part's streams."""
    config, shards = view.config, view.shards
    n_all = n_streams(config)
    n_own = n_all // math.gcd(n_all, n_parts * shard_count)
    # Each thread reads its own windows, and one of them starts the next.
    n_kept = (n_threads + 1) * n_own * config.n_blocks_per_window
    order = RowOrder(shards.parts, shards.weights, config, view.rng_seed)
    shards = shards.in_blocks(config.n_records_per_block, n_kept)
    view = dataclasses.replace(view, shards=shards)
    return BatchParts(view, order, n_parts, shard_index, shard_count)


class BatchStream(grain.DatasetIterator[Batch]):
    """Batches without end. The state, the next row, is the same for every host."""

    def __init__(self, parts: BatchParts, run: RunConfig):
        super().__init__()
        self._parts = parts
        self._run = run
        self._next_row = 0

    @functools.cached_property
    def _shared(self) -> SharedRows:
        """Places for the parts that Grain has in work or waiting."""
        parts, n_places = self._parts, self._run.n_threads + _N_WAITING
        n_rows = -(-parts.n_rows // (parts.shard_count * parts.n_parts))
        rows = parts.view.empty_rows(0)
        return SharedRows(rows, n_rows, parts.n_parts * n_places)

    @functools.cached_property
    def _made(self) -> grain.DatasetIterator[Any]:
        """Batches, or from loader processes the numbers of their parts."""
        run, parts = self._run, self._parts
        first = self._next_row // parts.n_rows * parts.n_parts
        numbers = grain.MapDataset.range(first, sys.maxsize)
        options = grain.ReadOptions(
            num_threads=run.n_threads, prefetch_buffer_size=run.n_threads
        )
        if not run.n_workers:
            return iter(numbers.map(parts).to_iter_dataset(options))
        # Grain's workers read absl flags, which only absl's programs parse.
        flags.FLAGS.mark_as_parsed()
        write = functools.partial(parts.fill_shared, shared=self._shared)
        written = numbers.map(write).to_iter_dataset(options)
        # Each makes every n-th part: the same rows of every batch.
        processes = grain.MultiprocessingOptions(num_workers=parts.n_parts)
        return iter(written.mp_prefetch(processes))

    @property
    def n_parts(self) -> int:
        """How many loader processes share a batch of this host; 1 without any."""
        return self._parts.n_parts

    def __next__(self) -> Batch:
        made = next(self._made)
        batch = self._join(made) if self._run.n_workers else made
        self._next_row += self._parts.n_rows
        return batch

    def _join(self, number: int) -> Batch:
        """A batch, of which each part has every `n_parts`-th row."""
        parts = self._parts
        batch = parts.view.empty_rows(parts.n_rows // parts.shard_count)
        for part in range(parts.n_parts):
            if part:
                number = next(self._made)
            rows = {name: x[part :: parts.n_parts] for name, x in batch.items()}
            self._shared.copy(number, rows)
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns the position of the next row in the stream of all rows."""
        return {"global_next_index": self._next_row}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes on from a state, of any number of hosts, workers and threads."""
        self.close()
        for name in ("_made", "_shared"):
            self.__dict__.pop(name, None)
        self._next_row = state["global_next_index"]

    def close(self) -> None:
        """Ends workers and threads."""
        if "_made" in self.__dict__:
            self._made.close()
        if "_shared" in self.__dict__:
            self._shared.close()


def stream_batches(
    view: ViewSample, run: RunConfig, *, shard_index: int = 0, shard_count: int = 1
) -> BatchStream:
    """Returns an endless iterator of batches, whose state is the position in it.

    With `shard_count` hosts, host `shard_index` reads rows `shard_index`,
    `shard_index + shard_count` and so on of each batch of `batch_size` rows. The state
    depends on neither. Raises ValueError if the hosts cannot share a batch evenly.
    """
    n_rows = view.config.batch_size
    if n_rows % shard_count:
        raise ValueError(
            f"data.batch_size={n_rows}: expected a multiple of {shard_count}, the"
            " number of processes"
        )
    n_parts = min(max(run.n_workers, 1), n_rows // shard_count)
    _warn_of_shared_blocks(view, n_parts, shard_count)
    return BatchStream(
        make_parts(view, run.n_threads, n_parts, shard_index, shard_count), run
    )


def _warn_of_shared_blocks(view: ViewSample, n_parts: int, shard_count: int) -> None:
    n_readers, n = n_parts * shard_count, n_streams(view.config)
    is_in_blocks = view.shards.is_remote and view.config.n_records_per_block > 1
    if is_in_blocks and n % n_readers:
        logging.warning(
            "data.n_streams=%d: expected a multiple of %d, which are %d hosts with %d"
            " loader processes each; several of them read the same blocks",
            *(n, n_readers, shard_count, n_parts),
        )
