"""The command `remove`: takes captions, pairs, shards or sources out of a run.

In: what to remove, by its names. Out: a run folder without it, and a record that keeps
it out. A removal that was killed is completed first, whatever else is asked for.
"""

import argparse
import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import curate
from pipeline.commands.status import remove_captions
from pipeline.engine.removals import Removals, delete_other_tables
from pipeline.engine.run_folder import RunFolder
from pipeline.removal import removing
from pipeline.sources import drop_lists
from pipeline.storage import patterns, wildcards
from recipes.command_line import FAILED, WRONG_USAGE, exits


def remove(
    command: argparse.Namespace,
    run: RunFolder,
    reopen: Callable[[], RunFolder],
    options: PipelineOptions,
) -> None:
    """Removes what a command names.

    Args:
      run: with the lots of the last command.
      reopen: opens it again.
    """
    with exits(WRONG_USAGE, ValueError):
        _expect_table(run.root, command.pairs)
        is_begun = Removals.read(run.root).unfinished is not None
    if is_begun:
        print("going on with a removal that was not complete")
        _finish(run.root, reopen, options)
        run = reopen()
    with exits(WRONG_USAGE, ValueError):
        if not _names_something(command):
            if is_begun:
                return
            raise ValueError(
                "remove: expected --granularity NAME-FINGERPRINT, --pairs FILE,"
                " --source NAME or --shards GLOB"
            )
        if command.granularity:
            remove_captions(run, command.granularity)
        before = Removals.read(run.root)
        removals, summary = _add(command, run, before)
        if removals == before:
            if not command.granularity:
                print("removed: all of it was removed before")
            return
        _begin(run, removals, summary, options)
    _finish(run.root, reopen, options)


def _expect_table(root: str, lists: Sequence[str]) -> None:
    """Restores a damaged table of removed pairs from all lists; ValueError without."""
    removals = Removals.read(root)
    try:
        removals.open_names(root)
    except ValueError:
        if not lists:
            raise
        try:
            removals.restore_table(root, _entries(lists, collections.Counter()))
            print("restored: the table of what was removed before", flush=True)
        finally:
            delete_other_tables(root)


def _begin(
    run: RunFolder,
    removals: Removals,
    summary: dict[str, Any],
    options: PipelineOptions,
) -> None:
    try:
        _expect_some_left(run, removals)
        with exits(FAILED, RuntimeError):  # of a worker
            is_begun = removing.begin(run, removals, options, summary)
    finally:
        delete_other_tables(run.root)
    if not is_begun:
        n_names = sum(summary["entries"].values())
        raise ValueError(
            "remove: expected what is in the run, but no pair of it has any of the"
            f" {n_names:,} names; nothing was changed. A drop list keeps out what is"
            " still to come"
        )


def _finish(
    root: str, reopen: Callable[[], RunFolder], options: PipelineOptions
) -> None:
    with exits(FAILED, ValueError, RuntimeError):  # the latter of a worker
        makers = (curate.flag, curate.export_shards)
        for line in removing.finish(root, reopen, options, *makers):
            print(line, flush=True)


def _names_something(command: argparse.Namespace) -> bool:
    return bool(
        command.granularity or command.pairs or command.source or command.shards
    )


def _add(
    command: argparse.Namespace, run: RunFolder, before: Removals
) -> tuple[Removals, dict[str, Any]]:
    """The record with what a command names, and its line about it."""
    sources = _sources(run, command.source)
    shards = {found for text in command.shards for found in _shards(run, text)}
    removals = dataclasses.replace(
        before, sources=before.sources | sources, shards=before.shards | shards
    )
    kind_to_n = {"sources": len(sources), "shards": len(shards)}
    if command.pairs:
        kinds: collections.Counter[str] = collections.Counter()
        removals = removals.with_entries(run.root, _entries(command.pairs, kinds))
        kind_to_n |= kinds
    summary = {
        "date": removing.today(),
        "entries": {k: n for k, n in kind_to_n.items() if n},
        "sources": len(sources - before.sources),
    }
    return removals, summary


def _entries(
    lists: Sequence[str], kinds: collections.Counter[str]
) -> Iterator[tuple[str, str]]:
    """Yields the entries of files, and counts them by kind."""
    for pattern in lists:
        try:
            uris = patterns.find(pattern, "files")
        except ValueError as error:
            raise ValueError(f"--pairs {error}") from error
        n_before = kinds.total()
        for uri in uris:
            for kind, value in drop_lists.read_entries(uri):
                kinds[kind] += 1
                yield kind, value
        if kinds.total() == n_before:
            raise ValueError(f"--pairs {pattern}: expected lines that name pairs")


def _sources(run: RunFolder, names: Sequence[str]) -> frozenset[str]:
    known = dict.fromkeys(
        lot.source_name for lot in run.plan.lots if lot.role == "pool"
    )
    for name in names:
        if name not in known:
            raise ValueError(f"--source {name}: expected one of {', '.join(known)}")
    return frozenset(names)


def _shards(run: RunFolder, text: str) -> set[tuple[str, str]]:
    matches = wildcards.translate(text).fullmatch
    found = {
        (lot.source_name, uri)
        for lot in run.plan.lots
        for uri, _ in lot.places
        if lot.role == "pool" and (uri == text or matches(uri))
    }
    if not found:
        raise ValueError(
            f"--shards {text}: expected a path or glob of shards of the run"
        )
    return found


def _expect_some_left(run: RunFolder, removals: Removals) -> None:
    shards = ((u.source.name, shard.uri) for u in run.lots for shard in u.shards)
    if all(removals.is_out(*shard) for shard in shards):
        raise ValueError(
            "remove: expected a shard that stays; to remove a whole run, delete its"
            " folder"
        )
