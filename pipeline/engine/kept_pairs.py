"""The kept pairs of a lot, joined from its pairs and its decisions.

In: tables with one row per pair of a lot. Out: the rows whose outcome is kept.
"""

import typing
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import KEPT, Pair
from pipeline.sources.shards import Lot
from pipeline.storage.tables import LotTables, from_table

_PAIRS_AT_ONCE = 4_096
_TYPE_TO_NOTHING = {bytes: b"", str: "", int: 0}
_NOTHING = {
    name: _TYPE_TO_NOTHING[kind] for name, kind in typing.get_type_hints(Pair).items()
}


def read_kept_rows(
    pairs: LotTables,
    decisions: LotTables,
    lot: Lot,
    columns: Iterable[str] | None = None,
) -> pa.Table:
    """Reads the kept rows of the table of pairs, in the order of the lot.

    Args:
      pairs: The tables of pairs of the lot's source.
      decisions: The tables of decisions.
      lot: A lot whose pairs are decided.
      columns: Columns of the table of pairs; None for all.
    """
    outcomes = decisions.read(lot.name, ["outcome"])["outcome"]
    table = pairs.read(lot.name, None if columns is None else list(columns))
    return table.filter(pc.equal(outcomes, KEPT))


def read_kept_pairs(pairs: LotTables, decisions: LotTables, lot: Lot) -> list[Pair]:
    """Reads the kept pairs of a lot, in its order."""
    return from_table(read_kept_rows(pairs, decisions, lot), Pair)


def iterate_kept_pairs(
    pairs: LotTables, decisions: LotTables, lot: Lot, columns: Sequence[str]
) -> Iterator[list[Pair]]:
    """Yields the kept pairs of a lot in its order, some thousands at a time.

    Fields of other columns than those asked for are empty: "", b"" or 0.
    """
    kept = read_kept_rows(pairs, decisions, lot, columns)
    for rows in kept.to_batches(max_chunksize=_PAIRS_AT_ONCE):
        yield [Pair(**(_NOTHING | row)) for row in rows.to_pylist()]
