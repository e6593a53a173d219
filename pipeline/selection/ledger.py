"""The ledger: how many pairs were read, kept, unreadable and dropped, by reason.

In: counts of each lot. Out: `ledger.json`, in which read = kept + unreadable +
dropped, for all sources together and for each of them.
"""

import json
from typing import Any

import numpy as np

from pipeline import records
from pipeline.engine.run_folder import LEDGER_NAME, RunFolder
from pipeline.selection.lot_decisions import OUTCOMES
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.json_files import read_json

# Source name to int64 [read, *one count for each of OUTCOMES].
SourceCounts = tuple[str, np.ndarray]


def count_pairs(lot: Lot, run: RunFolder) -> SourceCounts:
    """Counts the pairs of a lot from their table, and not from its decisions."""
    n_read = run.pairs(lot.source).read_summary(lot.name)["rows"]
    return count_lot(lot, n_read=n_read)


def count_lot(
    lot: Lot, *, n_read: int = 0, outcomes: np.ndarray | None = None
) -> SourceCounts:
    """The counts of one lot, `outcomes` in the order of OUTCOMES."""
    outcomes = np.zeros(len(OUTCOMES), np.int64) if outcomes is None else outcomes
    return lot.source.name, np.array([n_read, *outcomes])


def make_ledger(source_to_counts: dict[str, np.ndarray]) -> dict:
    """The ledger of all pairs together and, under "sources", of each source.

    Raises:
      ValueError: if pairs that were read have no decision or more than one.
    """
    total = sum(source_to_counts.values(), start=np.zeros(1 + len(OUTCOMES), np.int64))
    sources = {
        name: _ledger_of(name, counts)
        for name, counts in sorted(source_to_counts.items())
    }
    return _ledger_of("all sources", total) | {"sources": sources}


def _ledger_of(name: str, counts: np.ndarray) -> dict:
    n_read, *outcomes = counts.tolist()
    if n_read != sum(outcomes):
        raise ValueError(f"{name}: {n_read} pairs read, {sum(outcomes)} decided")
    outcome_to_count = dict(zip(map(str, OUTCOMES), outcomes, strict=True))
    return {
        "read": n_read,
        "kept": outcome_to_count.pop(records.KEPT),
        "unreadable": outcome_to_count.pop(records.UNREADABLE),
        "dropped": outcome_to_count,
    }


def write_ledger(ledger: dict, folders: tuple[str, ...], pool: str = "") -> dict:
    """Writes the ledger into folders: that of the run and that of its decisions.

    `pool` identifies the pool that the decisions are on.
    """
    ledger = {**ledger, "version": records.VERSION, "pool": pool}
    data = (json.dumps(ledger, indent=2) + "\n").encode()
    for folder in folders:
        files.write(_ledger_path(folder), data)
    return ledger


def is_complete(run: RunFolder) -> bool:
    """Whether the run has all decisions of its recipe on its pool, and their ledger."""
    return read(run) is not None


def restore_ledger(run: RunFolder) -> dict:
    """Copies the ledger of complete decisions to the run folder again; returns it.

    Another recipe may have left its own ledger there in the meantime.
    """
    data = files.read(_ledger_path(run.decisions.folder))
    files.write(_ledger_path(run.root), data)
    return json.loads(data)


def read(run: RunFolder) -> dict[str, Any] | None:
    """Reads what became of all pairs; None before they are decided on."""
    found = read_json(_ledger_path(run.decisions.folder))
    is_of_pool = found is not None and found.get("pool") == run.pool_fingerprint
    names = {lot.name for lot in run.lots}
    return (
        found if is_of_pool and names <= run.decisions.lot_names(known=names) else None
    )


def _ledger_path(folder: str) -> str:
    return files.join(folder, LEDGER_NAME)
