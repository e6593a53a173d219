"""The manifest of an export, the receipts of shards, and their file names.

In: summaries of units and receipts of shards. Out: JSON that says nothing about when or
where it was written, so that the same samples give the same bytes.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from pipeline.config.fingerprint import fingerprint
from pipeline.engine.run_folder import LEDGER_NAME, SET_ROLES, RunFolder
from pipeline.records import (
    KEPT,
    SCHEMA_VERSION,
    UNREADABLE,
    VERSION,
    DropReason,
)
from pipeline.sources.shards import Unit
from pipeline.storage import files
from pipeline.storage.json_files import read_json

NAME = "manifest.json"
INDEX_SUFFIX = ".index"
RECEIPT_SUFFIX = ".json"

_SHARD_FIELDS = ("name", "n_samples", "n_bytes", "sha256")


class HasFingerprint(Protocol):
    """A planned or written shard."""

    @property
    def name(self) -> str:
        """The file name."""

    @property
    def fingerprint(self) -> str:
        """The identity of the bytes."""


@dataclasses.dataclass(frozen=True)
class Receipt:
    """Marks a shard as complete; stored beside it as JSON."""

    name: str
    fingerprint: str
    n_samples: int
    n_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class UnitSummary:
    """The facts of one unit that the plan and the manifest need."""

    unit: Unit
    table_names: Mapping[str, Sequence[str]]  # granularity to its caption tables
    outcome_to_count: Mapping[str, int]
    n_without_granularity: Mapping[str, int]  # of the kept
    n_samples: int  # exported
    digest: str  # of the contents of their records
    # Granularity to what is not exported: "captions", and how many have each flag.
    dropped_captions: Mapping[str, Mapping[str, int]] = dataclasses.field(
        default_factory=dict
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
    header: dict[str, Any],
    summaries: Sequence[UnitSummary],
    receipts: Iterable[Receipt],
) -> dict[str, Any]:
    """The manifest, once all shards are written.

    `n_without_granularity` counts kept samples, including those that are not exported
    as they lack a required granularity. `dropped_captions` counts captions by
    granularity; a caption with two flags counts under both.
    """
    shards = sorted(receipts, key=lambda receipt: receipt.name)
    names = [(summary.unit, summary.table_names) for summary in summaries]
    fingerprints = {
        "inputs": inputs_fingerprint(header, names),
        "shards": shards_fingerprint(shards),
    }
    return header | {
        "fingerprints": header["fingerprints"] | fingerprints,
        "ledger": _ledger(summaries) | header["ledger"],
        "n_samples": sum(shard.n_samples for shard in shards),
        "n_without_granularity": {
            name: sum(summary.n_without_granularity[name] for summary in summaries)
            for name in header["granularities"]
        },
        "dropped_captions": {
            name: _add_up(summary.dropped_captions[name] for summary in summaries)
            for name in header["granularities"]
        },
        "shards": [
            {field: getattr(shard, field) for field in _SHARD_FIELDS}
            for shard in shards
        ],
    }


def _ledger(summaries: Iterable[UnitSummary]) -> dict[str, Any]:
    counts: collections.Counter[str] = collections.Counter()
    for summary in summaries:
        counts.update(summary.outcome_to_count)
    return {
        "read": counts.total(),
        "kept": counts[KEPT],
        "unreadable": counts[UNREADABLE],
        "dropped": {str(reason): counts[reason] for reason in DropReason},
    }


def _add_up(name_to_counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    counts: collections.Counter[str] = collections.Counter()
    for found in name_to_counts:
        counts.update(found)
    return dict(counts)


def inputs_fingerprint(
    header: dict[str, Any],
    table_names: Iterable[tuple[Unit, Mapping[str, Sequence[str]]]],
) -> str:
    """The fingerprint of all inputs of an export, from the names of their tables."""
    parts = ("captions", "decisions", "flags")
    fingerprints = {part: header["fingerprints"][part] for part in parts}
    units = [(unit.source.name, unit.name, names) for unit, names in table_names]
    ordered = sorted(units, key=lambda unit: unit[:2])
    return fingerprint("inputs", header["config"], fingerprints, ordered)


def shards_fingerprint(shards: Iterable[HasFingerprint]) -> str:
    """The fingerprint of the bytes of all shards."""
    return fingerprint("shards", sorted((s.name, s.fingerprint) for s in shards))


def file_names(shard_names: Iterable[str]) -> set[str]:
    """The names of all files of shards."""
    suffixes = ("", INDEX_SUFFIX, RECEIPT_SUFFIX)
    return {name + suffix for name in shard_names for suffix in suffixes}
