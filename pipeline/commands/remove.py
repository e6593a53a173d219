"""The command `remove`: takes captions, pairs, shards or sources out of a run.

In: what to remove, by its names. Out: a run folder without it, and a record that keeps
it out. A removal that was killed is completed first, whatever else is asked for.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import curate
from pipeline.commands.status import remove_captions
from pipeline.engine.listed_lots import shown
from pipeline.engine.removals import Entry, Removals, delete_other_tables
from pipeline.engine.run_folder import RunFolder
from pipeline.removal import removing
from pipeline.removal.listed_entries import ListedEntries
from pipeline.sources import drop_lists
from pipeline.storage import patterns, wildcards
from recipes.command_line import FAILED, WRONG_USAGE, exits, warn


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
        removals = _add(command, run, before)
        if removals == before:
            if not command.granularity:
                print("removed: nothing, as `remove` was given all of it before")
            return
        _begin(command.pairs, run, removals, options)
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
            removals.restore_table(root, _entries(lists))
            print("restored: the table of what was removed before", flush=True)
        finally:
            delete_other_tables(root)


def _begin(
    lists: Sequence[str], run: RunFolder, removals: Removals, options: PipelineOptions
) -> None:
    try:
        _expect_some_left(run, removals)
        with exits(FAILED, RuntimeError):  # of a worker
            found = removing.find(run, removals, options)
        before = Removals.read(run.root)
        entries = ListedEntries.of(
            _entries(lists),
            removals.open_names(run.root),
            before.open_names(run.root),
            found.matched,
        )
        is_begun = removing.begin(
            run, removals, found, _summary(before, removals, entries)
        )
    finally:
        delete_other_tables(run.root)
    if not is_begun:
        found_none = "".join(entries.describe_unknown())
        raise ValueError(
            f"remove: expected what is in the run, but {found_none}; nothing was"
            " changed. A drop list keeps out what is still to come"
        )
    warn(entries.describe_unknown())


def _summary(
    before: Removals, removals: Removals, entries: ListedEntries
) -> dict[str, Any]:
    """The line of the record: when something was removed, and what kinds."""
    n_sources = len(removals.sources - before.sources)
    n_shards = len(removals.shards - before.shards)
    kind_to_n = {"sources": n_sources, "shards": n_shards, **entries.kind_to_n}
    return {
        "date": removing.today(),
        "entries": {k: n for k, n in kind_to_n.items() if n},
        "sources": n_sources,
    }


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


def _add(command: argparse.Namespace, run: RunFolder, before: Removals) -> Removals:
    """The record with what a command names."""
    sources = _sources(run, command.source, before)
    shards = {s for text in command.shards for s in _shards(run, text, before)}
    removals = dataclasses.replace(
        before, sources=before.sources | sources, shards=before.shards | shards
    )
    if command.pairs:
        removals = removals.with_entries(run.root, _entries(command.pairs))
    return removals


def _entries(lists: Sequence[str]) -> Iterator[Entry]:
    """Yields the entries of files."""
    for pattern in lists:
        try:
            uris = patterns.find(pattern, "files")
        except ValueError as error:
            raise ValueError(f"--pairs {error}") from error
        is_empty = True
        for uri in uris:
            for entry in drop_lists.read_entries(uri):
                is_empty = False
                yield entry
        if is_empty:
            raise ValueError(f"--pairs {pattern}: expected lines that name pairs")


def _sources(run: RunFolder, names: Sequence[str], before: Removals) -> frozenset[str]:
    of_run = (lot.source_name for lot in run.plan.lots if lot.role == "pool")
    known = dict.fromkeys([*of_run, *sorted(before.sources)])
    for name in names:
        if name not in known:
            raise ValueError(f"--source {name}: expected one of {', '.join(known)}")
    return frozenset(names)


def _shards(run: RunFolder, text: str, before: Removals) -> set[tuple[str, str]]:
    """Shards that a text means, of the run or removed before."""
    lots = [lot for lot in run.plan.lots if lot.role == "pool"]
    known = {(lot.source_name, uri) for lot in lots for uri, _ in lot.places}
    known |= before.shards
    matches = wildcards.translate(text).fullmatch
    found = {shard for shard in known if matches(shard[1])}
    named = {shard for shard in known if shard[1] == text}
    if not found | named:
        example = shown([min(uri for _, uri in known)]) if known else "none"
        raise ValueError(
            f"--shards {text}: expected a path or glob of shards of the run, written"
            f" as the run has them: {example}"
        )
    try:
        uris, names = ({uri for _, uri in each} for each in (found, named))
        patterns.expect_one_meaning(text, uris, names)
    except ValueError as error:
        raise ValueError(f"--shards {error}") from error
    return found | named


def _expect_some_left(run: RunFolder, removals: Removals) -> None:
    shards = ((u.source.name, shard.uri) for u in run.lots for shard in u.shards)
    if all(removals.is_out(*shard) for shard in shards):
        raise ValueError(
            "remove: expected a shard that stays; to remove a whole run, delete its"
            " folder"
        )
