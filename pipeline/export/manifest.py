"""The manifest of an export, which alone says what belongs to it.

In: the receipts of all lots. Out: JSON that says nothing about when or where it was
written, so that the same samples give the same bytes.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.config.fingerprint import fingerprint
from pipeline.engine.run_folder import LEDGER_NAME, SET_ROLES, RunFolder
from pipeline.export.receipts import Inputs, Receipt, ShardFacts, add_up
from pipeline.records import (
    KEPT,
    SCHEMA_VERSION,
    UNREADABLE,
    VERSION,
    DropReason,
)
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.json_files import read_json

NAME = "manifest.json"
INDEX_SUFFIX = ".index"

_OWN_NAME = re.compile(
    r"train-(.+-\d{5,}-[0-9a-f]{12}|\d{5,}-of-\d{5,})\.(tfrecord|tar)(\..+)?"
    r"|manifest\.json\..+\.tmp"
)


def header(run: RunFolder) -> dict[str, Any]:
    """The part of a manifest that is known before a shard is written."""
    granularities = run.config.granularities
    decided = read_json(files.join(run.decisions.folder, LEDGER_NAME))
    flags = run.flags_fingerprint if run.config.export.drop_caption_flags else None
    return {
        "schema_version": SCHEMA_VERSION,
        "version": VERSION,
        "granularities": [granularity.name for granularity in granularities],
        "config": repr(run.config),
        "fingerprints": {
            "decisions": run.pool_fingerprint,
            "captions": {g.name: run.granularity_fingerprint(g) for g in granularities},
            "flags": flags,
        },
        "ledger": {role: (decided or {}).get(role, {}) for role in SET_ROLES},
    }


def complete(
    header: dict[str, Any], lots: Sequence[Lot], receipts: Sequence[Receipt]
) -> dict[str, Any]:
    """The manifest of exported lots, whose shards it names in their order.

    `n_without_granularity` counts kept samples, including those that are not exported
    as they lack a required granularity. `dropped_captions` counts captions by
    granularity; a caption with two flags counts under both. `n_failed` counts kept
    pairs that could not be exported, and `failures` the same by reason.
    """
    shards = [shard for receipt in receipts for shard in receipt.shards]
    inputs = [receipt.inputs for receipt in receipts]
    fingerprints = {
        "inputs": inputs_fingerprint(header, zip(lots, inputs, strict=True)),
        "shards": shards_fingerprint(shards),
    }
    counts = [receipt.counts for receipt in receipts]
    failures = add_up(receipt.failures for receipt in receipts)
    return header | {
        "fingerprints": header["fingerprints"] | fingerprints,
        "ledger": _ledger(add_up(c.outcomes for c in counts)) | header["ledger"],
        "n_samples": sum(shard.n_samples for shard in shards),
        "n_failed": sum(failures.values()),
        "failures": dict(sorted(failures.items())),
        "n_without_granularity": {
            name: sum(c.n_without_granularity[name] for c in counts)
            for name in header["granularities"]
        },
        "dropped_captions": {
            name: add_up(c.dropped_captions[name] for c in counts)
            for name in header["granularities"]
        },
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }


def _ledger(outcome_to_count: dict[str, int]) -> dict[str, Any]:
    return {
        "read": sum(outcome_to_count.values()),
        "kept": outcome_to_count.get(KEPT, 0),
        "unreadable": outcome_to_count.get(UNREADABLE, 0),
        "dropped": {
            str(reason): outcome_to_count.get(reason, 0) for reason in DropReason
        },
    }


def inputs_fingerprint(
    header: dict[str, Any], lot_inputs: Iterable[tuple[Lot, Inputs]]
) -> str:
    """The fingerprint of all inputs of an export."""
    lots = [(lot.source.name, lot.name, inputs) for lot, inputs in lot_inputs]
    parts = (header["config"], header["fingerprints"], header["ledger"])
    return fingerprint("inputs", *parts, lots)


def shards_fingerprint(shards: Iterable[ShardFacts]) -> str:
    """The fingerprint of the bytes of all shards."""
    return fingerprint("shards", [(shard.name, shard.sha256) for shard in shards])


def file_names(shard_names: Iterable[str]) -> set[str]:
    """The names of all files of shards."""
    return {name + suffix for name in shard_names for suffix in ("", INDEX_SUFFIX)}


def left_out(there: set[str], named: set[str]) -> list[str]:
    """Files of exports that a manifest does not name, in the order of their removal.

    Indexes come after shards, so that no shard ever lacks its index. Half-written files
    and shards of attempts that were killed are among them.
    """
    own = {name for name in there - named if _OWN_NAME.fullmatch(name)}
    return sorted(own, key=lambda name: (name.endswith(INDEX_SUFFIX), name))
