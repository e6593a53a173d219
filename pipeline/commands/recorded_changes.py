"""What flags would change against the run that a folder holds."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.commands import run_record
from pipeline.commands.configuration import has_flags
from pipeline.engine.run_folder import RunFolder
from recipes.plain_values import to_json
from recipes.validation import shown


def describe_changes(run: RunFolder, command: argparse.Namespace) -> Iterator[str]:
    """Yields the fields that flags change, and which tables would be made again.

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
    digests = record.checkpoint_to_digest
    there = RunFolder.open(run.root, record.config, known_digests=digests)
    names = ", ".join(_remade(there, run)) or "nothing"
    yield f"  would be made again: {names}"


def _remade(there: RunFolder, run: RunFolder) -> Iterator[str]:
    """Yields names of tables that the settings of `run` have not, and `there` has."""
    known = {there.embeddings(unit.source).path(unit.name) for unit in there.all_units}
    wanted = {run.embeddings(unit.source).path(unit.name) for unit in run.all_units}
    if n_new := len(wanted - known):
        yield f"scores of {n_new:,} of {len(wanted):,} shards"
    is_decided_again = run.decisions_fingerprint != there.decisions_fingerprint
    if is_decided_again:
        yield "decisions"
    old = {there.captions(granularity) for granularity in there.config.granularities}
    for granularity in run.config.granularities:
        if run.captions(granularity) not in old:
            yield f"captions of {granularity.name}"
    is_exported_again = to_json(run.config.export) != to_json(there.config.export)
    if is_decided_again or is_exported_again or _texts(run) != _texts(there):
        yield "training shards"


def _texts(run: RunFolder) -> Any:
    """What training shards hold of captions."""
    folders = [(g.name, run.captions(g)) for g in run.config.granularities]
    return folders, run.config.caption_quality


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
