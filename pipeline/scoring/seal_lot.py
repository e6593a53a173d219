"""Seals the parts of a lot's shards into the tables of the lot.

In: all scored shards of a lot. Out: its tables, each written as a whole, the index of
its sample ids, and the lot.
The bytes of a table do not depend on how its rows were cut into parts.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from pipeline.config.curation import ImageTextSource
from pipeline.engine import id_index
from pipeline.scoring import environment
from pipeline.scoring.missing_tables import Measure, Tables
from pipeline.scoring.parts import Part, ShardParts
from pipeline.scoring.shard_work import PLACES_KEY, ScoredShard, write_places
from pipeline.sources.shards import Lot


class SealLot(beam.DoFn):
    """Writes the tables that lots lack; passes on lots whose shards are all scored."""

    def __init__(
        self, root: str, source_to_tables: Mapping[ImageTextSource, Tables]
    ) -> None:
        self._root = root
        self._source_to_tables = source_to_tables

    def process(self, element: tuple[str, Iterable[ScoredShard]]) -> Iterator[Lot]:
        _, found = element
        number_to_scored = {scored.number: scored for scored in found}
        first = number_to_scored.get(0)
        if first is None or first.lot is None:
            return
        if len(number_to_scored) == len(first.lot.shards):
            self._seal(first.lot, first.missing)
            yield first.lot

    def _seal(self, lot: Lot, missing: Sequence[Measure]) -> None:
        tables = self._source_to_tables[lot.source]
        still_missing = [m for m in missing if not tables[m].has(lot.name)]
        shard_parts = [
            ShardParts.of(self._root, tables, lot.name, shard) for shard in lot.shards
        ]
        found = [(one, one.find(still_missing)) for one in shard_parts]
        environments = {
            each for one, parts in found for p in parts for each in one.environments(p)
        }
        facts = {
            "source": lot.source.name,
            environment.KEY: sorted(environments),
            "unreadable": sum(p.n_unreadable for _, parts in found for p in parts),
        }
        for measure in still_missing:
            self._write(lot, tables, measure, found, facts)
        for one in shard_parts:
            with contextlib.suppress(
                OSError
            ):  # what stays is removed with the last lot
                one.delete()

    def _write(
        self,
        lot: Lot,
        tables: Tables,
        measure: Measure,
        found: Sequence[tuple[ShardParts, Sequence[Part]]],
        facts: Mapping[str, Any],
    ) -> None:
        rows = (
            _numbered(one.read(part, measure), number, measure)
            for number, (one, parts) in enumerate(found)
            for part in parts
        )
        first = next(rows)
        schema = first.schema
        chained: Iterator[pa.Table] = itertools.chain([first], rows)
        if measure == "pairs":
            schema = schema.with_metadata({PLACES_KEY: write_places(lot.shards)})
            n_rows = sum(part.stop - part.start for _, parts in found for part in parts)
            n_buckets = id_index.count_buckets(n_rows)
            facts = {**facts, id_index.N_BUCKETS: n_buckets}
            chained = id_index.write_beside(
                chained, tables[measure], lot.name, n_buckets
            )
        tables[measure].write_parts(lot.name, schema, chained, facts)


def _numbered(rows: pa.Table, number: int, measure: Measure) -> pa.Table:
    """The rows of pairs with the number of their shard in this lot."""
    if measure != "pairs":
        return rows
    numbers = pa.array(np.full(rows.num_rows, number, np.int64))
    return rows.set_column(rows.schema.get_field_index("shard"), "shard", numbers)
