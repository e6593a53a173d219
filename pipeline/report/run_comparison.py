"""Comparison of the decisions of two runs.

In: a run, and the folder of another run over the same pairs, or of its decisions. Out:
counts of pairs by their two outcomes, with examples. Lots match by their name, or else
by their source and number, and pairs by their id.
"""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.engine.run_folder import CONFIG_NAME, RunFolder, check_format
from pipeline.engine.summaries import read_folders
from pipeline.records import Decision
from pipeline.report.sampling import PairLocation, SmallestKeys, hash_identities
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.json_files import read_json
from pipeline.storage.tables import LotTables, from_table

_N_SHOWN = 12  # most frequent changes, which have examples

Change = tuple[str, str]  # outcome in the other run, outcome here


@dataclasses.dataclass(frozen=True)
class OtherRun:
    """Decisions to compare with, and the configuration behind them."""

    folder: str
    decisions: LotTables
    config: Any  # as `to_json` gives it

    @classmethod
    def open(cls, folder: str) -> "OtherRun":
        """Opens a run folder, or a folder of decisions in one.

        Raises:
          ValueError: if there is none, or it has no decisions.
        """
        check_format("--against", folder)
        content = read_json(files.join(folder, CONFIG_NAME)) or {}
        fingerprint = content.get("decisions")
        if fingerprint is None:
            raise ValueError(
                f"--against {folder}: expected a run folder, or decisions of one, whose"
                f" {CONFIG_NAME} names its decisions: run `select` there first"
            )
        is_run = files.split(folder.rstrip("/"))[1] != fingerprint
        own = files.join(folder, "decisions", fingerprint) if is_run else folder
        tables = LotTables(own)
        if not tables.lot_names():
            raise ValueError(f"--against {folder}: expected decisions in {own}")
        return cls(folder, tables, content["config"])


@dataclasses.dataclass(frozen=True)
class ChangedPair:
    """A pair of both runs, and the decision of the other run on it."""

    location: PairLocation
    other: Decision


@dataclasses.dataclass(frozen=True)
class Changes:
    """Differences between the decisions of two runs."""

    n_common: int
    n_only_here: int
    n_only_there: int
    change_to_count: Mapping[Change, int]  # most frequent first
    change_to_examples: Mapping[Change, list[ChangedPair]]

    @property
    def n_changed(self) -> int:
        """Pairs with different outcomes in the two runs."""
        return sum(self.change_to_count.values())


def compare(run: RunFolder, other: OtherRun, n_examples: int) -> Changes:
    """Compares all decisions of two runs; keeps `n_examples` of each change.

    Of lots on whose pairs both decide the same, no table is read.
    """
    decisions = run.decisions
    ours, theirs = read_folders([decisions.folder, other.decisions.folder])
    own_to_other = _match_lots(run, frozenset(theirs))
    counts: collections.Counter[Change] = collections.Counter()
    examples: dict[Change, SmallestKeys] = {}
    n_common = n_only_here = n_only_there = 0
    for number, lot in enumerate(run.lots):
        other_name = own_to_other.get(lot.name)
        own = ours[lot.name]
        if other_name is not None and own["sha256"] == theirs[other_name]["sha256"]:
            n_common += own["rows"]
            continue
        joined = _JoinedLot.read(decisions, other, lot, other_name)
        n_common += len(joined.rows)
        n_only_here += joined.n_own - len(joined.rows)
        n_only_there += joined.n_other - len(joined.rows)
        for change, positions in joined.changes().items():
            counts[change] += len(positions)
            rows = joined.rows[positions]
            keys = hash_identities(
                joined.own["sample_id"].take(pa.array(rows)).to_pylist()
            )
            smallest = examples.setdefault(change, SmallestKeys(n_examples))
            smallest.add(number, rows, keys)
    for name in theirs.keys() - set(own_to_other.values()):
        n_only_there += theirs[name]["rows"]
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Changes(
        n_common=n_common,
        n_only_here=n_only_here,
        n_only_there=n_only_there,
        change_to_count=dict(by_count),
        change_to_examples={
            change: [
                _read_change(run.lots[one.lot], decisions, other, one, own_to_other)
                for one in examples[change].locations()
            ]
            for change, _ in by_count[:_N_SHOWN]
        },
    )


def _match_lots(run: RunFolder, names: frozenset[str]) -> dict[str, str]:
    """Name of a lot here to its name in the other run, or that of one in its place."""
    base_to_names = collections.defaultdict(list)
    for name in sorted(names):
        base_to_names[Lot(run.config.sources[0], name).base].append(name)
    found = {}
    for lot in run.lots:
        same_base = base_to_names[lot.base]
        if lot.name in names:
            found[lot.name] = lot.name
        elif len(same_base) == 1:
            found[lot.name] = same_base[0]
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class _JoinedLot:
    """The pairs of one lot that both runs have, as rows of the two tables."""

    own: pa.Table
    n_own: int
    n_other: int
    rows: np.ndarray
    other_rows: np.ndarray
    outcomes: np.ndarray  # str [n]
    other_outcomes: np.ndarray

    @classmethod
    def read(
        cls,
        decisions: LotTables,
        other: OtherRun,
        lot: Lot,
        other_name: str | None,
    ) -> "_JoinedLot":
        columns = ["sample_id", "outcome"]
        own = decisions.read(lot.name, columns)
        if other_name is None:
            theirs = own.slice(0, 0)
        else:
            theirs = other.decisions.read(other_name, columns)
        rows, other_rows = _match_rows(own["sample_id"], theirs["sample_id"])
        return cls(
            own=own,
            n_own=own.num_rows,
            n_other=theirs.num_rows,
            rows=rows,
            other_rows=other_rows,
            outcomes=_texts(own["outcome"], rows),
            other_outcomes=_texts(theirs["outcome"], other_rows),
        )

    def changes(self) -> dict[Change, np.ndarray]:
        """Returns change to positions in `rows` of pairs with different outcomes."""
        found = collections.defaultdict(list)
        for i in np.flatnonzero(self.outcomes != self.other_outcomes).tolist():
            change = (self.other_outcomes[i], self.outcomes[i])
            found[change].append(i)
        return {change: np.array(positions) for change, positions in found.items()}


def _match_rows(own: pa.Array, other: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Rows of equal ids; pairs that share an id match in their order."""
    if own.equals(other):
        rows = np.arange(len(own))
        return rows, rows
    id_to_rows: dict[bytes, collections.deque[int]]
    id_to_rows = collections.defaultdict(collections.deque)
    for row, sample_id in enumerate(other.to_pylist()):
        id_to_rows[sample_id].append(row)
    both = [
        (row, id_to_rows[sample_id].popleft())
        for row, sample_id in enumerate(own.to_pylist())
        if id_to_rows.get(sample_id)
    ]
    rows, other_rows = np.array(both, np.int64).reshape(-1, 2).T
    return rows, other_rows


def _texts(column: pa.ChunkedArray, rows: np.ndarray) -> np.ndarray:
    return np.array(column.take(pa.array(rows)).to_pylist(), dtype=object)


def _read_change(
    lot: Lot,
    decisions: LotTables,
    other: OtherRun,
    location: PairLocation,
    own_to_other: Mapping[str, str],
) -> ChangedPair:
    """Reads the decision of the other run on one pair of a lot."""
    other_name = own_to_other[lot.name]
    joined = _JoinedLot.read(decisions, other, lot, other_name)
    row = joined.other_rows[np.searchsorted(joined.rows, location.row)]
    table = other.decisions.read(other_name).take(pa.array([row]))
    (decision,) = from_table(table, Decision)
    return ChangedPair(location, decision)
