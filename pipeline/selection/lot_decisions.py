"""The decisions on the pairs of one lot, while `select` makes them.

The element between the steps of `select`: one object per source shard, with arrays of
one entry per pair. Steps never change it; they return a new one.
"""

import dataclasses
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import records
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.sources.shards import Lot
from pipeline.storage.tables import LotTables, schema_of

OUTCOMES = (records.KEPT, records.UNREADABLE, *DropReason)

_OUTCOME_TO_CODE = {outcome: code for code, outcome in enumerate(OUTCOMES)}
_HASH_WORDS = 2  # of 8 bytes: ids and hashes have 16
_KEPT = _OUTCOME_TO_CODE[records.KEPT]
_UNREADABLE = _OUTCOME_TO_CODE[records.UNREADABLE]


@dataclasses.dataclass(frozen=True, eq=False)
class LotDecisions:
    """Outcomes of the pairs of one lot; entry i is row i of its `pairs` table."""

    lot: Lot
    outcome: np.ndarray  # int8, position in OUTCOMES
    value: np.ndarray  # float64; NaN when kept, unreadable or without a measure
    threshold: np.ndarray  # float64; NaN as above
    detail: np.ndarray  # str
    seeds: np.ndarray  # tuples of names

    @property
    def kept_rows(self) -> np.ndarray:
        """Rows that nothing has dropped yet, ascending."""
        return np.flatnonzero(self.outcome == _KEPT)

    @property
    def droppable_rows(self) -> np.ndarray:
        """`kept_rows` that a filter may still drop: none of a `keep_all` source."""
        return self.kept_rows[:0] if self.lot.source.keep_all else self.kept_rows

    def is_dropped_for(self, reason: DropReason) -> np.ndarray:
        """Whether each pair has been dropped for a reason: bool [n]."""
        return self.outcome == _OUTCOME_TO_CODE[reason]

    def drop(
        self,
        rows: np.ndarray,
        reason: DropReason,
        *,
        value: np.ndarray | float = np.nan,
        threshold: np.ndarray | float = np.nan,
        detail: np.ndarray | list[str] | str = "",
    ) -> "LotDecisions":
        """The same decisions with `rows` dropped.

        `value`, `threshold` and `detail` are one for all rows, or one per row.
        """
        return dataclasses.replace(
            self,
            outcome=_put(self.outcome, rows, _OUTCOME_TO_CODE[reason]),
            value=_put(self.value, rows, value),
            threshold=_put(self.threshold, rows, threshold),
            detail=_put(self.detail, rows, detail),
        )

    def with_seeds(self, rows: np.ndarray, seeds: np.ndarray) -> "LotDecisions":
        """The same decisions, with the names of the seed sets that want each row."""
        return dataclasses.replace(self, seeds=_put(self.seeds, rows, seeds))

    def counts(self) -> np.ndarray:
        """The number of pairs with each of OUTCOMES: int64 [len(OUTCOMES)]."""
        return np.bincount(self.outcome, minlength=len(OUTCOMES))

    def to_table(self, sample_ids: pa.ChunkedArray) -> pa.Table:
        """The decisions as a table of `records.Decision`."""
        columns = {
            "sample_id": sample_ids,
            "outcome": pa.array(OUTCOMES, pa.string()).take(pa.array(self.outcome)),
            "value": pa.array(self.value, from_pandas=True),
            "threshold": pa.array(self.threshold, from_pandas=True),
            "detail": pa.array(self.detail, pa.string()),
            "seeds": pa.array(self.seeds, pa.list_(pa.string())),
        }
        return pa.table(columns, schema=schema_of(records.Decision))


def open_lot(lot: Lot, run: RunFolder) -> LotDecisions:
    """Keeps every pair that `score` could read; the others are unreadable.

    The detail of an unreadable pair is its error.
    """
    table = run.pairs(lot.source).read(lot.name, columns=["error"])
    errors = to_objects(table["error"])
    n_pairs = len(errors)
    return LotDecisions(
        lot=lot,
        outcome=np.where(errors == "", _KEPT, _UNREADABLE).astype(np.int8),
        value=np.full(n_pairs, np.nan),
        threshold=np.full(n_pairs, np.nan),
        detail=errors,
        seeds=np.fromiter(itertools.repeat((), n_pairs), dtype=object),
    )


def outcome_counts(decisions: pa.Table) -> np.ndarray:
    """`LotDecisions.counts`, from a table of decisions."""
    return np.bincount(outcome_codes(decisions), minlength=len(OUTCOMES))


def outcome_codes(decisions: pa.Table) -> np.ndarray:
    """Positions in OUTCOMES, one per row of a table of decisions: int [n]."""
    codes = pc.index_in(decisions["outcome"], pa.array(OUTCOMES, pa.string()))
    return codes.to_numpy()


def read_rows(
    tables: LotTables, decisions: LotDecisions, rows: np.ndarray, *columns: str
) -> pa.Table:
    """Reads some rows of a table that has one row per pair.

    Raises:
      ValueError: if the table has another number of rows than the lot has pairs.
    """
    table = tables.read(decisions.lot.name, list(columns) or None)
    expect_rows(tables.path(decisions.lot.name), table.num_rows, decisions)
    return table if len(rows) == table.num_rows else table.take(pa.array(rows))


def expect_rows(path: str, n_rows: int, decisions: LotDecisions) -> None:
    """Raises ValueError unless a table has one row per pair."""
    n_pairs = len(decisions.outcome)
    if n_rows != n_pairs:
        raise ValueError(f"{path}: {n_rows} rows, expected {n_pairs}, one per pair")


def to_objects(column: pa.ChunkedArray) -> np.ndarray:
    """A column of strings as an array of `str`."""
    return column.to_numpy().astype(object)


def to_words(column: pa.ChunkedArray) -> np.ndarray:
    """Hashes of 16 bytes as uint64 [n, 2], in the order of the bytes.

    Raises:
      ValueError: if a hash has another length.
    """
    data = b"".join(column.to_pylist())
    words = np.frombuffer(data, dtype=">u8").reshape(-1, _HASH_WORDS)
    if len(words) != len(column):
        raise ValueError(f"{len(data)} bytes of hashes, expected {16 * len(column)}")
    return words.astype(np.uint64)


def to_hex(words: np.ndarray) -> str:
    """One hash of `to_words`, uint64 [2], as 32 hexadecimal digits."""
    return words.astype(">u8").tobytes().hex()


def _put(array: np.ndarray, rows: np.ndarray, values: object) -> np.ndarray:
    changed = array.copy()
    changed[rows] = values
    return changed
