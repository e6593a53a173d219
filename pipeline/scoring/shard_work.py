"""The elements of `score`: shards to measure, and what became of them."""

import dataclasses
import json
import os
from collections.abc import Sequence

import pyarrow.parquet as pq

from pipeline.scoring.missing_tables import Measure
from pipeline.sources.shards import Lot, Shard
from pipeline.storage.tables import open_table

PLACES_KEY = b"shards"  # of the metadata of a table of pairs


@dataclasses.dataclass(frozen=True)
class Donor:
    """A lot that holds the rows of a shard already."""

    lot_name: str
    number: int  # of the shard in that lot


@dataclasses.dataclass(frozen=True)
class ShardWork:
    """A shard of a lot, and the tables that the lot lacks."""

    lot_name: str
    shard: Shard
    number: int  # of the shard in the lot
    missing: tuple[Measure, ...]
    donor: Donor | None
    lot: Lot | None  # the lot, with its first shard alone: it holds all shards

    def scored(self) -> "ScoredShard":
        """What is left to say once the parts are there."""
        return ScoredShard(self.number, self.missing, self.lot)


@dataclasses.dataclass(frozen=True)
class ScoredShard:
    """A shard whose parts are all there; the first of a lot brings the lot along."""

    number: int
    missing: tuple[Measure, ...]
    lot: Lot | None


def write_places(shards: Sequence[Shard]) -> bytes:
    """Path and mark of the shards of a lot, for the metadata of its table of pairs."""
    places = [(os.fsencode(s.uri).hex(), s.mark) for s in shards]
    return json.dumps(places).encode()


def read_places(path: str) -> list[tuple[str, str]]:
    """Path and mark of the shards that a table of pairs is of."""
    with open_table(path) as file:
        metadata = pq.read_schema(file).metadata
    places = json.loads(metadata[PLACES_KEY])
    return [(os.fsdecode(bytes.fromhex(uri)), mark) for uri, mark in places]
