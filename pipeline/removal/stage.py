"""The jobs of a removal: which pairs it means, and the tables of lots without them.

In: the record of what is removed. Out: how many pairs of each lot go; then the
tables of the successors of these lots, and the captions without those of images that
are gone. Lots are worked on all at once, each by one worker.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from pipeline.engine.removals import Removals, Succession
from pipeline.removal.lot_tables import (
    NAMING,
    Folders,
    Images,
    rewrite,
    rewrite_captions,
)
from pipeline.storage import files

STAGE = "remove"

# A lot, and numbers of its shards that are removed.
LotWork = tuple[str, Sequence[int]]
# Pairs of a lot that are named, pairs of its removed shards, hashes as hex.
LotCounts = tuple[int, int, str]
# A base name of lots, which lots of it are succeeded, and which stay.
BaseWork = tuple[str, Sequence[tuple[str, str, tuple[int, ...]]], Sequence[str]]


class FindRemoved(beam.PTransform):
    """Writes a JSON object to a path: lot to which of its pairs are removed.

    Two numbers: of pairs that a record names, in shards that stay, and of pairs of
    removed shards; then the hashes that name them, as hex in one text. Only of lots
    with such pairs.
    """

    def __init__(
        self, root: str, removals: Removals, works: Sequence[LotWork], path: str
    ) -> None:
        super().__init__()
        self._works = list(works)
        self._count = _CountRemoved(root, removals)
        self._path = path

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        return (
            begin
            | "Name lots" >> beam.Create(self._works)
            | "Distribute lots" >> beam.Reshuffle()
            | "Count removed pairs" >> beam.ParDo(self._count)
            | "Collect counts" >> beam.combiners.ToDict()
            | "Write counts" >> beam.Map(_write_counts, self._path)
        )


def _write_counts(counts: dict[str, LotCounts], path: str) -> None:
    files.write(path, json.dumps(dict(sorted(counts.items()))).encode())


class _OnTables(beam.DoFn):
    """Lists the folders of tables once for each worker."""

    def __init__(self, root: str) -> None:
        self._root = root

    def setup(self) -> None:
        self._folders = Folders.of(self._root)


class _CountRemoved(_OnTables):
    """Yields a lot and how many of its pairs are removed, unless none is."""

    def __init__(self, root: str, removals: Removals) -> None:
        super().__init__(root)
        self._removals = removals

    def setup(self) -> None:
        super().setup()
        self._removed = self._removals.open_names(self._root)

    def process(self, work: LotWork) -> Iterator[tuple[str, LotCounts]]:
        name, dropped = work
        most: tuple[int, int] = (0, 0)
        matched: set[bytes] = set()
        for tables in self._folders.pairs:
            if tables.has(name):
                pairs = tables.read(name, [*NAMING, "shard"])
                is_dropped = np.isin(pairs["shard"].to_numpy(), dropped)
                is_named, hashes = self._removed.find(pairs)
                matched.add(hashes.tobytes())
                is_named &= ~is_dropped
                most = max(most, (int(is_named.sum()), int(is_dropped.sum())))
        if any(most):
            yield name, (*most, b"".join(sorted(matched)).hex())


class RewriteLots(beam.PTransform):
    """Writes the tables of the successors of lots, all lots of one base together."""

    def __init__(self, root: str, works: Sequence[BaseWork]) -> None:
        super().__init__()
        self._works = list(works)
        self._rewrite = _RewriteBase(root)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        return (
            begin
            | "Name bases" >> beam.Create(self._works)
            | "Distribute bases" >> beam.Reshuffle()
            | "Rewrite lots" >> beam.ParDo(self._rewrite)
        )


class _RewriteBase(_OnTables):
    def setup(self) -> None:
        super().setup()
        self._removed = Removals.read(self._root).open_names(self._root)

    def process(self, work: BaseWork) -> Iterator[Any]:
        base, successions, others = work
        of_base = Images()
        for fields in successions:
            lot = Succession(*fields)
            images = rewrite(self._folders, self._removed, lot)
            rewrite_captions(self._folders, lot.old, lot.new, images)
            of_base |= images
        of_base |= Images(left=frozenset(self._hashes(others)))
        rewrite_captions(self._folders, base, base, of_base)
        yield base

    def _hashes(self, names: Sequence[str]) -> Iterator[bytes]:
        for tables in self._folders.pairs:
            for name in filter(tables.has, names):
                yield from tables.read(name, ["image_hash"])["image_hash"].to_pylist()
