"""The order in which an epoch shows records that are read in blocks.

Blocks are records that follow each other. The blocks of an epoch are shuffled, and
dealt to streams, which take turns. In each stream the records of every few adjacent
blocks, a window, are shuffled. What a position shows is a function of the seed and the
position alone, and takes the same few operations for any position and any number of
records.
"""

import dataclasses
import functools
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Int

from trainer.data.hashed_random import many_uniforms, uniforms

# Up to this size a permutation is sorted and kept. Grain's needs no memory, but takes
# 0.1 to 5 ms for fewer than a thousand numbers.
_N_SORTED = 2**14


class Shown(NamedTuple):
    """A record, and those that are read together with it."""

    record: int
    block: range


@dataclasses.dataclass(frozen=True)
class BlockOrder:
    """Maps a position of the endless stream of a set to the record shown there.

    Each of the streams has an equal share of an epoch's records, and positions
    `i`, `i + n_streams`, ... of the endless stream are of one of them. A block on the
    border of two shares is cut in two, so that each stream reads its own part: streams
    together read every record once per epoch.
    """

    records: range  # of the set
    n_records_per_block: int  # the last block has the rest
    n_blocks_per_window: int
    rng_seed: int
    n_streams: int = 1

    def __call__(self, position: int) -> Shown:
        epoch, place = divmod(position, len(self.records))
        number, share = divmod(place, self.n_streams)
        salt = f"{self.rng_seed}:{epoch}"
        slots, places = self._slots(salt), self._places(share)
        first_slot = slots.at(places.start)
        slot = slots.at(places.start + number)
        window = (slot - first_slot) // self.n_blocks_per_window
        slot = first_slot + window * self.n_blocks_per_window
        start = max(places.start, slots.start(slot))
        end = min(places.stop, slots.start(slot + self.n_blocks_per_window))
        mixed = f"{salt}:{share}:{window}" if self.n_streams > 1 else f"{salt}:{window}"
        number = _permute(places.start + number - start, end - start, mixed)
        return self._shown(start + number, places, slots, salt)

    def _slots(self, salt: str) -> "_Slots":
        n_blocks = -(-len(self.records) // self.n_records_per_block)
        last_slot = int(_draw(f"{salt}:last") * n_blocks)
        return _Slots(len(self.records), self.n_records_per_block, n_blocks, last_slot)

    def _places(self, share: int) -> range:
        """The places of an epoch, a whole one, that a stream has."""
        n, n_longer = divmod(len(self.records), self.n_streams)
        start = share * n + min(share, n_longer)
        return range(start, start + n + (share < n_longer))

    def _shown(self, place: int, places: range, slots: "_Slots", salt: str) -> Shown:
        slot, block = slots.at(place), slots.n_blocks - 1
        if slot != slots.last_slot:
            block = _permute(slot - (slot > slots.last_slot), block, f"{salt}:blocks")
        start, end = slots.start(slot), slots.start(slot + 1)
        own = range(max(start, places.start), min(end, places.stop))
        shift = block * self.n_records_per_block - start
        return Shown(
            self.records[place + shift],
            self.records[own.start + shift : own.stop + shift],
        )


@dataclasses.dataclass(frozen=True)
class _Slots:
    """The places of an epoch cut into slots of one block each; one may be short."""

    n_records: int
    n_records_per_block: int
    n_blocks: int
    last_slot: int  # where the last block stands

    @property
    def _n_missing(self) -> int:
        return self.n_blocks * self.n_records_per_block - self.n_records

    def start(self, slot: int) -> int:
        """The first place of a slot; the end of the epoch for slots behind the last."""
        n_missing = self._n_missing if slot > self.last_slot else 0
        return min(slot * self.n_records_per_block - n_missing, self.n_records)

    def at(self, place: int) -> int:
        """The slot of a place."""
        if place >= self.start(self.last_slot + 1):
            place += self._n_missing
        return place // self.n_records_per_block


def _permute(number: int, n: int, salt: str) -> int:
    """The place of a number in a permutation of `n` numbers."""
    if n <= _N_SORTED:
        return int(_order(n, salt)[number])
    seed = int(_draw(salt) * 2**32)
    return grain.experimental.index_shuffle(number, n - 1, seed, 4)


@functools.lru_cache(maxsize=4096)  # one for each open window
def _order(n: int, salt: str) -> Int[np.ndarray, "n"]:
    """One permutation, which all records of a window, or of an epoch, share."""
    order = many_uniforms(n, salt, b"order").argsort(kind="stable")
    return order.astype(np.uint16)


@functools.lru_cache(maxsize=64)
def _draw(salt: str) -> float:
    return uniforms(1, salt, b"order")[0]
