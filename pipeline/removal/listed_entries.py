"""Which entries of a list of pairs name no pair of a run: for most, a slip.

In: the entries of a list, the table of all that names removed pairs, and which hashes
of it pairs of the run have. Out: numbers of different entries by kind, and a line about
those that no pair has. The entries themselves are written nowhere.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from pipeline.engine.listed_lots import shown
from pipeline.engine.removals import Entry, RemovedNames
from pipeline.sources import drop_tables

_ENTRIES_AT_A_TIME = 10_000
_N_KEPT = 3  # one more than a line shows


@dataclasses.dataclass(frozen=True)
class ListedEntries:
    """The different entries of a list."""

    kind_to_n: Mapping[str, int]
    kind_to_unknown: Mapping[str, int]  # of those that name no pair, and are new
    unknown: tuple[str, ...]  # the first of them

    @classmethod
    def of(
        cls,
        entries: Iterable[Entry],
        names: RemovedNames,
        before: RemovedNames,
        matched: np.ndarray,
    ) -> "ListedEntries":
        """Looks at all entries; takes a byte for each hash of the table.

        Args:
          names: of all entries, and of `before`.
          before: what was named by other lists.
          matched: hashes that pairs of the run have, in any order.
        """
        is_matched = np.zeros(len(names.hashes), dtype=bool)
        is_matched[np.searchsorted(names.hashes, matched)] = True
        kind_to_n = collections.Counter[str]()
        kind_to_unknown = collections.Counter[str]()
        unknown: list[str] = []
        for (kind, value), place in _different(entries, names, before):
            kind_to_n[kind] += 1
            if place is not None and not is_matched[place]:
                kind_to_unknown[kind] += 1
                if len(unknown) < _N_KEPT:
                    unknown.append(value if kind == "url" else f"{kind}:{value}")
        return cls(kind_to_n, kind_to_unknown, tuple(unknown))

    def describe_unknown(self) -> Iterator[str]:
        """Yields a line about entries that name no pair, if there are any."""
        n_unknown = sum(self.kind_to_unknown.values())
        if n_unknown:
            kinds = ", ".join(f"{k} {n:,}" for k, n in self.kind_to_unknown.items())
            n = sum(self.kind_to_n.values())
            entries = "entry" if n == 1 else "entries"
            name = "names" if n_unknown == 1 else "name"
            yield (
                f"{n_unknown:,} of {n:,} {entries} {name} no pair of this run"
                f" ({kinds}): {shown(self.unknown)}"
            )


def _different(
    entries: Iterable[Entry], names: RemovedNames, before: RemovedNames
) -> Iterator[tuple[Entry, int | None]]:
    """Yields each entry once, with its place in the table, None if it was there."""
    is_seen = np.zeros(len(names.hashes), dtype=bool)
    left = iter(entries)
    while some := list(itertools.islice(left, _ENTRIES_AT_A_TIME)):
        hashes = names.hashes_of(some)
        places = np.searchsorted(names.hashes, hashes).tolist()
        is_old = drop_tables.is_in(hashes, before.hashes).tolist()
        for entry, place, was_there in zip(some, places, is_old, strict=True):
            if not is_seen[place]:
                is_seen[place] = True
                yield entry, None if was_there else place
