"""The order in which an epoch shows records that are read in blocks.

Blocks are records that follow each other. The blocks of an epoch are shuffled; then
the records of every few adjacent blocks, a window, are shuffled. The record at a
position is a function of the seed and the position alone, and takes the same few
operations for any position and any number of records.
"""

import dataclasses
import functools

import grain
import numpy as np
from jaxtyping import Int

from trainer.data.hashed_random import many_uniforms, uniforms

# Up to this size a permutation is sorted and kept. Grain's needs no memory, but takes
# 0.1 to 5 ms for fewer than a thousand numbers.
_N_SORTED = 2**14


@dataclasses.dataclass(frozen=True)
class BlockOrder:
    """Maps a position of the endless stream of a set to the record shown there."""

    records: range  # of the set
    n_records_per_block: int  # the last block has the rest
    n_blocks_per_window: int
    rng_seed: int

    def __call__(self, position: int, _: int) -> int:
        epoch, place = divmod(position, len(self.records))
        return self.records[self._shuffled(place, f"{self.rng_seed}:{epoch}")]

    def _shuffled(self, place: int, salt: str) -> int:
        n_blocks = -(-len(self.records) // self.n_records_per_block)
        last_slot = int(_draw(f"{salt}:last") * n_blocks)
        slots = _Slots(len(self.records), self.n_records_per_block, n_blocks, last_slot)
        window = slots.at(place) // self.n_blocks_per_window
        start = slots.start(window * self.n_blocks_per_window)
        end = slots.start(min((window + 1) * self.n_blocks_per_window, n_blocks))
        place = start + _permute(place - start, end - start, f"{salt}:{window}")
        slot = slots.at(place)
        block = n_blocks - 1
        if slot != last_slot:
            block = _permute(slot - (slot > last_slot), block, f"{salt}:blocks")
        return block * self.n_records_per_block + place - slots.start(slot)


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
        """The first place of a slot."""
        n_missing = self._n_missing if slot > self.last_slot else 0
        return slot * self.n_records_per_block - n_missing

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


@functools.lru_cache(maxsize=64)
def _order(n: int, salt: str) -> Int[np.ndarray, "n"]:
    """One permutation, which all records of a window, or of an epoch, share."""
    return many_uniforms(n, salt, b"order").argsort(kind="stable")


@functools.lru_cache(maxsize=64)
def _draw(salt: str) -> float:
    return uniforms(1, salt, b"order")[0]
