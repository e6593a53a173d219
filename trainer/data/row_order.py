"""Which record each row of each batch shows: a function of the seed and the row alone.

Position p of the endless stream of rows is row p mod B of batch p div B. Several sets
take turns by their weights, and every epoch of a set is shuffled again: over all its
records or, to spare an object store requests, in blocks of them. Blocks may be dealt
to `n_streams` streams; row r of every batch is of stream r mod `n_streams`. Whoever
makes the rows of some streams therefore reads the blocks of these streams alone.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import grain
import numpy as np

from trainer.config import DataConfig
from trainer.data.block_shuffle import BlockOrder, Shown


class Row(NamedTuple):
    """What a row shows."""

    position: int  # in the endless stream of its set
    record: int  # its number among those of all sets
    block: range  # records that are read together with it


class RowOrder:
    """Maps a position of the endless stream of rows to what is shown there.

    Threads may share it; cheap to pickle.
    """

    def __init__(
        self,
        parts: Sequence[range],
        weights: Sequence[float],
        config: DataConfig,
        rng_seed: int,
    ):
        """`parts` are the records of each set; their rows are shared by `weights`.

        Each set has its own seed: otherwise two recipes of one pool would show their
        versions of a sample side by side.
        """
        self._n_streams = n_streams(config)
        self._orders = [
            _make_order(part, (rng_seed + number) % 2**32, config)
            for number, part in enumerate(parts)
        ]
        self._shares = _whole_shares(weights)
        self._n_rows_per_stream = config.batch_size // self._n_streams

    def __call__(self, position: int) -> Row:
        """Returns what the row at a position shows."""
        number, stream = divmod(position, self._n_streams)
        # Streams take different turns at once: so every batch has all shares.
        first = stream * self._n_rows_per_stream
        before = _n_turns(first, self._shares)
        now = _n_turns(first + number, self._shares)
        after = _n_turns(first + number + 1, self._shares)
        turn = next(i for i, n in enumerate(after) if n > now[i])
        position = (now[turn] - before[turn]) * self._n_streams + stream
        return Row(position, *self._orders[turn](position))


def n_streams(config: DataConfig) -> int:
    """Returns how many streams take turns; single records are all of one."""
    if config.n_records_per_block == 1:
        return 1
    return config.n_streams or config.batch_size


def _make_order(
    part: range, rng_seed: int, config: DataConfig
) -> Callable[[int], Shown]:
    if config.n_records_per_block == 1:
        return _RecordOrder(part, rng_seed)
    return BlockOrder(
        part,
        config.n_records_per_block,
        config.n_blocks_per_window,
        rng_seed,
        n_streams(config),
    )


class _RecordOrder:
    """Epochs of records one by one, each shuffled over all of them."""

    def __init__(self, records: range, rng_seed: int):
        self._records = records
        # As `grain.MapDataset.seed(rng_seed).shuffle().repeat()` shows them.
        sequence = np.random.SeedSequence([rng_seed, 1])
        self._seed = int(sequence.generate_state(1, np.uint32)[0])

    def __call__(self, position: int) -> Shown:
        n = len(self._records)
        epoch, place = divmod(position, n)
        seed = (self._seed + epoch) % 2**32
        place = grain.experimental.index_shuffle(place, n - 1, seed, 4)
        record = self._records[place]
        return Shown(record, range(record, record + 1))


def _whole_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights as integers, of which the least is 100: within 1 % of them."""
    return tuple(int(weight * (100 / min(weights))) for weight in weights)


def _n_turns(n_rows: int, shares: Sequence[int]) -> list[int]:
    """How many of the first rows are of each set, as `grain.MapDataset.mix` has them.

    >>> [_n_turns(n, (100, 300)) for n in range(5)]
    [[0, 0], [1, 0], [1, 1], [1, 2], [1, 3]]
    """
    found, left = [], sum(shares)
    for share in shares:
        others = n_rows * (left - share) // left
        found.append(n_rows - others)
        n_rows, left = others, left - share
    return found
