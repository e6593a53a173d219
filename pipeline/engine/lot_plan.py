"""The plan of lots: which shards make up each lot of a run.

In: the shards that are listed now, and the lots that are known. Out: the lots of the
run. A lot never changes. Shards that are new make new lots; a lot that lost a shard, or
of which a shard changed, is succeeded by another one of the same base name, which takes
over the rows of the shards that are still the same.

The plan is one table, RUN/lots/plan.parquet, with a row per shard.
"""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.curation import ImageTextSource
from pipeline.sources.shards import Lot, PlannedShards, Shard, list_shards
from pipeline.storage import files

NAME = "lots/plan.parquet"
ROLES = ("pool", "evaluation", "seeds")
SINGLE = "shard"  # the base name of lots of one shard that a sample is made of

_IDENTITY = ("lot", "role", "source", "predecessor", "removed")
_PLACE = ("uri", "mark")
_COLUMNS = (*_IDENTITY, *_PLACE)
# Paths are bytes, as not all of them are texts.
_SCHEMA = pa.schema([(n, pa.binary() if n == "uri" else pa.string()) for n in _COLUMNS])
_MAX_BASE_CHARS = 60
_DIGEST_BYTES = 6

Role = str  # one of ROLES
Place = tuple[str, str]  # path and mark of a shard


class _Rows(Sequence[Place]):
    """The places of a lot as they are read: texts of a million shards take long."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Place]:
        uris, marks = (column.to_pylist() for column in self._table)
        is_text = pa.types.is_string(self._table["uri"].type)
        return zip(uris if is_text else map(os.fsdecode, uris), marks, strict=True)

    def __getitem__(self, index: Any) -> Any:
        return tuple(self)[index]


@dataclasses.dataclass(frozen=True)
class PlannedLot:
    """A lot as the plan knows it, whether its shards are listed now or not."""

    name: str
    role: Role
    source_name: str
    predecessor: str  # "" if none
    removed: str  # identifies what was removed from it; "" if nothing
    places: Sequence[Place] = dataclasses.field(compare=False)  # which the name says

    @property
    def base(self) -> str:
        """The name that the lot shares with its predecessors and successors."""
        return self.name.rpartition("-")[0]

    @property
    def identity(self) -> tuple[str, Role, str, str, str]:
        """All but the places."""
        lot = (self.name, self.role, self.source_name)
        return (*lot, self.predecessor, self.removed)

    def to_lot(self, source: ImageTextSource) -> Lot:
        """The lot as stages see it."""
        shards = PlannedShards(source, self.places)
        return Lot(source, self.name, shards, self.predecessor)

    def without(self, places: Collection[Place], removal: str) -> "PlannedLot | None":
        """The lot that succeeds this one in a removal; None if no shard is left.

        Args:
          places: of its shards that are removed.
          removal: identifies what is removed from others of its shards; "" if nothing.
        """
        left = [place for place in self.places if place not in places]
        removed = self.removed
        if removal:
            data = f"{removed}:{removal}".encode()
            removed = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
        lot = (self.base, self.role, self.source_name)
        return _make_lot(*lot, left, self.predecessor, removed) if left else None


@dataclasses.dataclass(frozen=True)
class LotPlan:
    """The known lots, in the order in which they came to be."""

    lots: tuple[PlannedLot, ...] = ()
    # Whether the run folder has this plan.
    is_written: bool = dataclasses.field(default=False, compare=False)

    @classmethod
    def read(cls, root: str) -> Self:
        """The plan of a run folder; empty if it has none yet."""
        try:
            data = files.read(files.join(root, *NAME.split("/")))
        except FileNotFoundError:
            return cls()
        table = pq.read_table(io.BytesIO(data), columns=list(_COLUMNS))
        ends = [*_starts_of_runs(table["lot"]), len(table)]
        firsts = table.select(_IDENTITY).take(ends[:-1])
        identities = zip(*(column.to_pylist() for column in firsts), strict=True)
        places = table.select(_PLACE)
        with contextlib.suppress(pa.ArrowInvalid):  # on a path that is no text
            places = places.cast(pa.schema([(name, pa.string()) for name in _PLACE]))
        lots = (
            PlannedLot(
                *(name, role, of, before, removed),
                places=_Rows(places.slice(start, stop - start)),
            )
            for (name, role, of, before, removed), (start, stop) in zip(
                identities, itertools.pairwise(ends), strict=True
            )
        )
        return cls(tuple(lots), is_written=True)

    def write(self, root: str) -> None:
        """Writes the plan into a run folder, unless it was read from there."""
        if self.is_written:
            return
        rows = [_SCHEMA.empty_table(), *map(_rows_of, self.lots)]
        table = pa.concat_tables(rows).combine_chunks()
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        files.write(files.join(root, *NAME.split("/")), sink.getvalue().to_pybytes())

    def add(
        self,
        role: Role,
        source: ImageTextSource,
        uri_to_mark: Mapping[str, str],
        size: int,
    ) -> tuple["LotPlan", tuple[Lot, ...]]:
        """The lots of the listed shards of a source, and the plan that knows them all.

        Args:
          uri_to_mark: path of each shard to its mark.
          size: how many shards a new lot has at most.
        """
        known = [x for x in self.lots if (x.role, x.source_name) == (role, source.name)]
        left = dict(uri_to_mark)
        chosen = list(_take_known(known, left))
        number = max((_number_of(lot.name) for lot in known), default=-1) + 1
        places = sorted(left.items())
        for first in range(0, len(places), size):
            base = f"{_base_of(role, source.name)}-{number:05d}"
            chosen.append(
                _make_lot(base, role, source.name, places[first : first + size])
            )
            number += 1
        names = {lot.name for lot in self.lots}
        new = tuple(lot for lot in chosen if lot.name not in names)
        lots = tuple(lot.to_lot(source) for lot in chosen)
        return (LotPlan((*self.lots, *new)) if new else self), lots

    def paths(self, role: Role, source_name: str) -> list[str]:
        """The paths of the shards of all lots of a source that are known, sorted."""
        known = ((role, source_name) == (x.role, x.source_name) for x in self.lots)
        lots = itertools.compress(self.lots, known)
        return sorted(uri for lot in lots for uri, _ in lot.places)

    def changed(self, lots: Iterable[Lot]) -> dict[str, tuple[str, ...]]:
        """Name of each known lot to its shards that hold something else now."""
        lots = list(lots)
        names = {lot.name for lot in lots}
        others = [lot for lot in self.lots if lot.name not in names]
        if not others:  # a lot of the same name has the same marks
            return {}
        marks = {shard.uri: shard.mark for lot in lots for shard in lot.shards}
        found = {
            lot.name: tuple(u for u, mark in lot.places if marks.get(u, mark) != mark)
            for lot in others
        }
        return {name: uris for name, uris in found.items() if uris}

    def succeeded(self, old_to_new: Mapping[str, PlannedLot | None]) -> "LotPlan":
        """The plan with successors in the place of some lots; None is no successor."""
        name_to_lot: dict[str, PlannedLot] = {}
        for lot in self.lots:
            new = old_to_new.get(lot.name, lot)
            if new is not None:
                before = old_to_new.get(new.predecessor)
                if new.predecessor in old_to_new:
                    name = before.name if before else ""
                    new = dataclasses.replace(new, predecessor=name)
                name_to_lot.setdefault(new.name, new)
        return LotPlan(tuple(name_to_lot.values()))

    def without(self, names: Iterable[str]) -> "LotPlan":
        """The plan without some lots."""
        left_out = set(names)
        lots = tuple(x for x in self.lots if x.name not in left_out)
        return self if len(lots) == len(self.lots) else LotPlan(lots)


def _rows_of(lot: PlannedLot) -> pa.Table:
    """The rows of a lot in the table of the plan."""
    uris, marks = zip(*lot.places, strict=True)
    same = [pa.repeat(text, len(uris)) for text in lot.identity]
    places = (pa.array(map(os.fsencode, uris)), pa.array(marks))
    return pa.table([*same, *places], schema=_SCHEMA)


def _starts_of_runs(column: pa.ChunkedArray) -> list[int]:
    """The positions of values that differ from the one before."""
    if not len(column):
        return []
    is_new = pc.not_equal(column[1:], column[: len(column) - 1]).to_numpy()
    return [0, *(np.flatnonzero(is_new) + 1).tolist()]


def _take_known(
    known: Sequence[PlannedLot], left: dict[str, str]
) -> Iterator[PlannedLot]:
    """Yields known lots whose shards are listed, or their successors.

    Takes the shards of each out of `left`, path to mark.
    """
    name_to_lot = {lot.name: lot for lot in known}
    for lot in known:
        places = list(lot.places)
        kept = [(uri, left.pop(uri)) for uri, _ in places if uri in left]
        if kept == places:
            yield lot
        elif kept:
            parts = (lot.base, lot.role, lot.source_name)
            now = _make_lot(*parts, kept, lot.name, lot.removed)
            yield name_to_lot.get(now.name, now)


def _make_lot(
    base: str,
    role: Role,
    source_name: str,
    places: Sequence[Place],
    predecessor: str = "",
    removed: str = "",
) -> PlannedLot:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    texts = itertools.chain.from_iterable(places)
    for text in (role, source_name, *filter(None, (removed,)), *texts):
        digest.update(text.encode(errors="surrogateescape") + b"\0")
    name = f"{base}-{digest.hexdigest()}"
    return PlannedLot(name, role, source_name, predecessor, removed, tuple(places))


def _base_of(role: Role, source_name: str) -> str:
    plain = re.sub(r"[^\w.-]", "_", source_name, flags=re.ASCII)[:_MAX_BASE_CHARS]
    return plain if role == "pool" else f"{role}-{plain}"


def _number_of(lot_name: str) -> int:
    return int(lot_name.split("-")[-2])


def single(shard: Shard) -> Lot:
    """The lot of one shard alone, named by it: what samples are made of."""
    return Lot(shard.source, f"{SINGLE}-{shard.digest}", (shard,))


def singles(source: ImageTextSource) -> tuple[Lot, ...]:
    """A lot for each shard of a source."""
    return tuple(map(single, list_shards(source)))


def plan_lots(
    plan: LotPlan,
    role_to_listed: Mapping[Role, Mapping[ImageTextSource, Mapping[str, str]]],
    size: int,
) -> tuple[LotPlan, dict[Role, tuple[Lot, ...]]]:
    """Plans the lots of all listed shards, by role and in the order of sources.

    Of a source, the path of each shard to its mark is listed.

    Args:
      plan: that of the lots which are known.
    """
    role_to_lots: dict[Role, tuple[Lot, ...]] = {}
    for role, listed in role_to_listed.items():
        lots: list[Lot] = []
        for source, uri_to_mark in listed.items():
            plan, found = plan.add(role, source, uri_to_mark, size)
            lots += found
        role_to_lots[role] = tuple(lots)
    return plan, role_to_lots
