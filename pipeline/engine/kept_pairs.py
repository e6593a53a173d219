"""The kept pairs of a unit, joined from its pairs and its decisions.

In: tables with one row per pair of a unit. Out: the rows whose outcome is kept.
"""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import KEPT, Pair
from pipeline.sources.shards import Unit
from pipeline.storage.tables import UnitTables, from_table


def read_kept_rows(
    pairs: UnitTables,
    decisions: UnitTables,
    unit: Unit,
    columns: Iterable[str] | None = None,
) -> pa.Table:
    """Reads the kept rows of the table of pairs, in the order of the unit.

    Args:
      pairs: The tables of pairs of the unit's source.
      decisions: The tables of decisions.
      unit: A unit whose pairs are decided.
      columns: Columns of the table of pairs; None for all.
    """
    outcomes = decisions.read(unit.name, ["outcome"])["outcome"]
    table = pairs.read(unit.name, None if columns is None else list(columns))
    return table.filter(pc.equal(outcomes, KEPT))


def read_kept_pairs(pairs: UnitTables, decisions: UnitTables, unit: Unit) -> list[Pair]:
    """Reads the kept pairs of a unit, in its order."""
    return from_table(read_kept_rows(pairs, decisions, unit), Pair)
