"""Puts the shards of all lots into the manifest, and then removes what it left out.

In: the receipts of all lots. Out: the manifest, swapped as a whole. Nothing is removed
before: a reader finds every shard of the manifest that it read, or another manifest.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.engine import error_tables
from pipeline.engine.counters import Counters
from pipeline.engine.run_folder import RunFolder
from pipeline.export import manifest, receipts
from pipeline.export.completeness import names_in
from pipeline.export.receipts import Receipt, Receipts
from pipeline.export.shard_formats import TFRECORD, ShardFormat
from pipeline.storage import files
from pipeline.storage.object_urls import is_object_url

STAGE = "export"


def publish(run: RunFolder, shard_format: ShardFormat = TFRECORD) -> Counters:
    """Swaps the manifest once all lots have receipts.

    Raises:
      ValueError: if a lot has none, or more pairs failed than the recipe allows; then
        the manifest and its shards stay as they were.
    """
    folder = shard_format.path(run.root)
    written = Receipts.of(folder)
    found = _expect_all(run, folder, written)
    content = manifest.complete(manifest.header(run), run.lots, found)
    n_tried = content["n_samples"] + content["n_failed"]
    bound = run.config.max_failed_share
    failures, errors = content["failures"], shard_format.errors
    error_tables.expect_few(run.root, errors, failures, n_tried, bound)
    there = names_in(folder)
    named = manifest.file_names(shard["name"] for shard in content["shards"])
    if lost := sorted(named - there):
        path = files.join(folder, lost[0])
        raise ValueError(f"{path}: expected a file of a shard; run `export` again")
    _swap(files.join(folder, manifest.NAME), content)
    _remove_other_receipts(folder, {lot.name for lot in run.lots})
    written.write_cache()
    left_out = manifest.left_out(there, named)
    files.delete(folder, left_out)  # last: while one is there, an export is not over
    return {"files_removed": len(left_out)} if left_out else {}


def _expect_all(run: RunFolder, folder: str, written: Receipts) -> list[Receipt]:
    found = list(map(written.find, run.lots))
    missing = [
        lot.name
        for lot, receipt in zip(run.lots, found, strict=True)
        if receipt is None
    ]
    if missing:
        raise ValueError(
            f"{files.join(folder, receipts.FOLDER)}: expected a receipt of every lot,"
            f" but {len(missing):,} have none, such as {missing[0]}; run `export` again"
        )
    return [receipt for receipt in found if receipt is not None]


def _swap(path: str, content: Mapping[str, Any]) -> None:
    """Replaces the manifest unless it says the same.

    Raises:
      ValueError: if another export wrote it meanwhile.
    """
    data = json.dumps(content, indent=1).encode() + b"\n"
    try:
        written, version = files.read_with_version(path)
    except FileNotFoundError:
        is_swapped = files.create(path, data)
    else:
        is_swapped = written == data or files.replace(path, data, version)
    if not is_swapped and files.is_remote(path) and not is_object_url(path):
        files.write(path, data)  # such a file system knows no conditions
        is_swapped = True
    if not is_swapped and files.read(path) != data:
        raise ValueError(f"{path}: expected no other export to write it meanwhile")


def _remove_other_receipts(folder: str, lot_names: set[str]) -> None:
    there = names_in(files.join(folder, receipts.FOLDER))
    stale = sorted(there - {name + receipts.SUFFIX for name in lot_names})
    own: Sequence[str] = [name for name in stale if name.endswith(receipts.SUFFIX)]
    files.delete(files.join(folder, receipts.FOLDER), own)
