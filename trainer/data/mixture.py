"""Several exports as one sequence of samples, and the share of each in training."""

import bisect
import copy
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Self

from pipeline.records import Sample
from trainer.data.shards import Shards


class Mixture:
    """The samples of one set after another, in the order of the sets' names."""

    def __init__(
        self,
        name_to_shards: Mapping[str, Shards],
        weights: Mapping[str, float] | None = None,
    ):
        """Without weights, all samples of all sets are shown equally often.

        Raises ValueError if the weights do not name these sets.
        """
        names = sorted(name_to_shards)
        if weights and sorted(weights) != names:
            raise ValueError(
                f"data.mixture: weights of {', '.join(sorted(weights))}, expected"
                f" weights of {', '.join(names)}, which --data names"
            )
        self._sets = [name_to_shards[name] for name in names]
        self._ends = list(itertools.accumulate(map(len, self._sets)))
        self.weights: tuple[float, ...] = tuple(
            weights[name] if weights else len(name_to_shards[name]) for name in names
        )
        found = (name for shards in self._sets for name in shards.granularities)
        self.granularities: tuple[str, ...] = tuple(dict.fromkeys(found))
        self.fingerprint: str = _fingerprint(names, self._sets)

    def in_blocks(self, n_records: int, n_kept: int) -> Self:
        """Returns the same samples, which each set reads as `Shards.in_blocks` says."""
        other = copy.copy(self)
        other._sets = [shards.in_blocks(n_records, n_kept) for shards in self._sets]
        return other

    @property
    def is_remote(self) -> bool:
        """Whether a set is in an object store."""
        return any(shards.is_remote for shards in self._sets)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        """Raises RecordError if the record is broken."""
        shards, part = self._locate(index)
        return shards[index - part.start]

    def read(self, index: int, block: range) -> Sample:
        """Reads a sample as `Shards.read` does; `block` lies in its set."""
        shards, part = self._locate(index)
        first = part.start
        own = range(block.start - first, block.stop - first)
        return shards.read(index - first, own)

    def place(self, index: int) -> str:
        """Returns the shard and the number of a record, for messages."""
        shards, part = self._locate(index)
        return shards.place(index - part.start)

    def part(self, index: int) -> range:
        """Returns the samples of the set that a sample belongs to."""
        return self._locate(index)[1]

    @property
    def parts(self) -> tuple[range, ...]:
        """The samples of each set."""
        return tuple(itertools.starmap(range, itertools.pairwise([0, *self._ends])))

    def _locate(self, index: int) -> tuple[Shards, range]:
        number = bisect.bisect_right(self._ends, index)
        shards = self._sets[number]
        end = self._ends[number]
        return shards, range(end - len(shards), end)


def open_mixture(folders: Sequence[str], weights: Mapping[str, float]) -> Mixture:
    """Opens the folders of `--data`: `[NAME=]FOLDER`; by default the folder is the
    name.

    A folder may be in an object store: `gs://BUCKET/RUN/tfrecords`. Raises ValueError
    if a folder is no export, or if names and weights do not fit.
    """
    name_to_shards: dict[str, Shards] = {}
    for argument in folders:
        name, is_named, folder = argument.partition("=")
        if not is_named or "/" in name:
            name = folder = argument
        if name in name_to_shards:
            raise ValueError(f"--data {argument}: expected another name than {name}")
        name_to_shards[name] = Shards(folder)
    return Mixture(name_to_shards, weights)


def _fingerprint(names: Sequence[str], sets: Sequence[Shards]) -> str:
    """A single set keeps its own fingerprint, whatever its name."""
    if len(sets) == 1:
        return sets[0].fingerprint
    contents = [[n, shards.fingerprint] for n, shards in zip(names, sets, strict=True)]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()
