"""What flags would change against the run that a folder holds, and so be made."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.captioning import flag_counts
from pipeline.captioning.coverage import count_captioned
from pipeline.commands import run_record
from pipeline.commands.configuration import has_flags
from pipeline.engine.run_folder import RunFolder
from pipeline.export import completeness
from pipeline.scoring import missing_tables
from pipeline.selection import ledger
from pipeline.storage import files
from recipes.plain_values import to_json
from recipes.validation import shown


def describe_changes(run: RunFolder, command: argparse.Namespace) -> Iterator[str]:
    """Yields the fields that flags change, and what is missing for them.

    Nothing without flags, or where the record cannot be read.
    """
    if not command.config and not has_flags(command):
        return
    try:
        record = run_record.read(run.root)
    except ValueError:
        return
    fields = list(_differences(to_json(record.config), to_json(run.config)))
    if not fields:
        return
    yield "against the run that is there:"
    for name, old, new in fields:
        yield f"  {name}: {shown(old)} -> {shown(new)}"
    names = ", ".join(describe_missing(run)) or "nothing"
    yield f"  would be made: {names}"


def describe_missing(run: RunFolder) -> Iterator[str]:
    """Yields what stages would find missing, the first of them before the others."""
    kind_to_n = missing_tables.count_missing(run)
    yield from (f"{kind} of {n:,} shards" for kind, n in kind_to_n.items())
    is_decided = not kind_to_n and ledger.is_complete(run)
    if not is_decided:
        yield "decisions"
    uncaptioned = list(_uncaptioned(run))
    yield from (f"captions of {name}" for name in uncaptioned)
    granularities = run.config.granularities
    if granularities and not is_decided:
        yield "captions of pairs that are kept then and were not before"
    is_captioned = is_decided and not uncaptioned
    if granularities and not (is_captioned and flag_counts.is_complete(run)):
        yield "flags of captions"
    if not is_captioned:
        yield "training shards whose pairs or captions change"
    elif not completeness.is_complete(run):
        yield "training shards"


def _uncaptioned(run: RunFolder) -> Iterator[str]:
    """Yields the granularities without captions of all pairs that are kept so far."""
    coverage = count_captioned(run)
    folders = set(files.folders(files.join(run.root, "captions")))
    for granularity in run.config.granularities:
        name = f"{granularity.name}-{run.granularity_fingerprint(granularity)}"
        is_captioned = granularity.captioner == "imported"
        if coverage is not None:
            n_captioned, n_kept = coverage.counts(granularity.name)
            is_captioned = is_captioned or n_captioned >= n_kept
        if name not in folders or not is_captioned:
            yield granularity.name


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (a.b, old value, new value) where two configurations differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            inner = f"{name}.{key}" if name else str(key)
            yield from _differences(old.get(key), new.get(key), inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{name}.{number}")
    elif old != new:
        yield name, old, new
