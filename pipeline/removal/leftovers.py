"""What else in a run folder can show a removed pair: removed, or written again.

In: a run whose lots have successors. Out: the run folder without the tables of the lots
that are succeeded, without lists and pictures of single pairs, with a ledger of the
pairs that are left.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.captioning import imported
from pipeline.engine import id_index
from pipeline.engine.removals import RemovedNames
from pipeline.engine.run_folder import SET_ROLES, RunFolder
from pipeline.engine.summaries import CACHE_NAME, Summaries
from pipeline.removal.lot_tables import NAMING, Folders
from pipeline.scoring import parts
from pipeline.selection import ledger, reference_accounts
from pipeline.selection.lot_decisions import OUTCOMES
from pipeline.storage import files
from pipeline.storage.json_files import read_json
from pipeline.storage.tables import SUMMARY_SUFFIX, open_table

# Folders and files that show single pairs, each made again by a command.
_NAME_TO_MAKER = {
    "report": "`report` writes it again",
    "pictures": "`trainer.pictures` draws them again",
    "audit.json": "`--audit` writes it again",
    "clusters": "`select` makes them again",
}
_INDEXES = {"indexes": "`select` makes them again"}  # of evaluation and seed images
_LISTS = {
    reference_accounts.FILE_NAME,
    *(f"{kind}.jsonl" for kind in imported.LEFT_OUT),
}


def delete_lots(root: str, names: Collection[str]) -> None:
    """Deletes all tables of lots, and files of summaries of several lots."""
    folders, bases = Folders.of(root), {name.rpartition("-")[0] for name in names}
    for tables in folders.errors:  # of caption tables, which have names of bases
        stems = sorted(tables.lot_names())
        tables.delete([n for n in stems if any(f"{base}." in n for base in bases)])
    for tables in folders.all:
        found = [files.split(path)[1] for path in files.list_folder(tables.folder)]
        of_lots = [name for name in found if _lot_of(name) & set(names)]
        summaries = [name for name in of_lots if name.endswith(SUMMARY_SUFFIX)]
        others = [name for name in of_lots if not name.endswith(SUMMARY_SUFFIX)]
        more = [name for name in found if name in _LISTS or name == CACHE_NAME]
        files.delete(tables.folder, [*others, *summaries, *more])


def _lot_of(file_name: str) -> set[str]:
    """The lots that a file may be of: `<lot>.parquet`, `<lot>.<digest>.parquet`."""
    stem = file_name
    for suffix in (SUMMARY_SUFFIX, ".parquet", id_index.SUFFIX):
        stem = stem.removesuffix(suffix)
    return {stem, stem.rpartition(".")[0]}


def delete_parts(root: str, removed: RemovedNames, bases: Collection[str]) -> None:
    """Deletes what is scored of shards whose lots are not sealed, if removed pairs are
    in it or their lots are succeeded."""
    folder = files.join(root, parts.FOLDER)
    doomed = set()
    for name in sorted(files.list_below(folder)):
        shard = name.rpartition("/")[0]
        base = shard.rpartition("/")[2].rpartition(".")[0]
        if base in bases or _has_removed(files.join(folder, name), removed):
            doomed.add(shard)
    for shard in sorted(doomed):
        parent, _, name = shard.rpartition("/")
        files.delete_folder(files.join(folder, parent), name)


def has_listed(root: str, removed: RemovedNames) -> bool:
    """Whether lists of captions that were not imported name what is removed."""
    for tables in Folders.of(root).captions:
        for kind in imported.LEFT_OUT:
            try:
                data = files.read(files.join(tables.folder, f"{kind}.jsonl"))
            except FileNotFoundError:
                continue
            rows = map(json.loads, data.splitlines())
            if removed.matches(_named_in(list(rows))).any():
                return True
    return False


def _named_in(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    columns: dict[str, list] = {"url": [row.get("url", "") for row in rows]}
    for name in ("image_hash", "sample_id"):
        columns[name] = [bytes.fromhex(row.get(name, "")) for row in rows]
    return pa.table(columns)


def _has_removed(path: str, removed: RemovedNames) -> bool:
    with open_table(path) as file:
        opened = pq.ParquetFile(file)
        if "pairs" not in opened.schema_arrow.names:
            return False
        columns = [f"pairs.{name}" for name in NAMING]
        rows = opened.read(columns)["pairs"].combine_chunks()
    return bool(removed.matches(pa.Table.from_struct_array(rows)).any())


def delete_pictures(root: str, *, with_indexes: bool) -> Iterator[str]:
    """Deletes what shows single pairs; yields a line on each."""
    single = set(map(_name_of, files.list_folder(root)))
    makers = _NAME_TO_MAKER | (_INDEXES if with_indexes else {})
    for name, maker in makers.items():
        path = files.join(root, name)
        if name in single:
            files.delete(root, [name])
        elif files.list_below(path):
            files.delete_folder(root, name)
        else:
            continue
        yield f"removed: {path}; {maker}"
    lists = files.list_folder(files.join(root, "lots"), suffix=".json")
    names = set(map(_name_of, lists)) - {"listed.json"}
    files.delete(files.join(root, "lots"), sorted(names))


def _name_of(path: str) -> str:
    return files.split(path)[1]


def restore_ledger(run: RunFolder) -> bool:
    """Writes the ledger of the decisions that are left; False if some are missing."""
    decided, pairs = Summaries.read(run.decisions.folder), {}
    for source in run.config.sources:
        pairs[source] = Summaries.read(run.pairs(source).folder)
    if not all(lot.name in decided for lot in run.lots):
        return False
    totals: dict[str, np.ndarray] = {}
    for lot in run.lots:
        outcomes = decided[lot.name]["outcomes"]
        counts = np.array([outcomes[str(name)] for name in OUTCOMES])
        n_read = pairs[lot.source][lot.name]["rows"]
        name, found = ledger.count_lot(lot, n_read=n_read, outcomes=counts)
        totals[name] = totals.get(name, 0) + found
    path = files.join(run.decisions.folder, "ledger.json")
    before: Mapping = read_json(path) or {}
    sets = {role: before.get(role, {}) for role in SET_ROLES}
    made = ledger.make_ledger(totals) | sets
    folders = (run.decisions.folder, run.root)
    ledger.write_ledger(made, folders, run.pool_fingerprint)
    return True
