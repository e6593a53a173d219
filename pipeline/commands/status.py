"""The commands `status` and `remove`: what a run folder holds, and less of it."""

import collections
import json
import time
from collections.abc import Sequence

from pipeline.captioning import spending
from pipeline.captioning.coverage import count_captioned
from pipeline.engine import engines, error_tables, progress, run_lock
from pipeline.engine.jobs import EngineError
from pipeline.engine.removals import Removals
from pipeline.engine.run_folder import RunFolder
from pipeline.engine.summaries import Summaries, read_folders
from pipeline.scoring import environment
from pipeline.selection import ledger, reference_accounts
from pipeline.storage import files
from recipes.safe_text import visible

_N_REASONS = 5  # of errors of a stage, the most frequent ones


def remove_captions(run: RunFolder, names: Sequence[str]) -> None:
    """Removes captions by `NAME-FINGERPRINT`; ValueError if they are not there."""
    folder = files.join(run.root, "captions")
    if not names:
        raise ValueError("remove: expected --granularity NAME-FINGERPRINT")
    there = files.folders(folder)
    for name in names:
        if name not in there:
            expected = ", ".join(sorted(there)) or "captions to remove"
            raise ValueError(f"--granularity {name}: expected one of {expected}")
    for name in dict.fromkeys(names):
        files.delete_folder(folder, name)
        print(f"removed: {files.join(folder, name)}")


def print_status(run: RunFolder) -> None:
    """What is there: scored shards, decisions, captions by granularity and flag.

    Captions of other prompts, models or recipes stay until they are removed by name.
    """
    if at_work := progress.describe(run.root, time.time()):
        print(at_work)
    if job := run_lock.named_job(run.root):
        try:
            print(f"{job}: {engines.state_of(job)}")
        except EngineError as error:
            print(f"{job}: not known, as {error}")
    print(f"scored: {_describe_scored(run)}")
    if mixed := _describe_environments(run):
        print(f"  measured with different versions or devices: {mixed}")
    found = ledger.read(run)
    print(f"selected: {json.dumps(found, indent=1) if found else 'no'}")
    for line in reference_accounts.warnings(run, found or {}):
        print(line)
    coverage = count_captioned(run)
    for granularity in run.config.granularities:
        covered = "not all captioned and checked yet"
        if coverage is not None:
            n_captioned, n_kept = coverage.counts(granularity.name)
            covered = f"{n_captioned:,} of {n_kept:,} kept"
        fingerprint = run.granularity_fingerprint(granularity)
        print(f"{granularity.name}-{fingerprint}: {covered}")
        if spent := spending.describe(run, granularity):
            print(f"  {spent}")
        flagged = coverage and coverage.name_to_flags.get(granularity.name)
        if flagged:
            flags = ", ".join(
                f"{name} {n:,}" for name, n in sorted(flagged.flag_to_count.items())
            )
            n_flagged, n_captions = flagged.n_flagged, flagged.n_captions
            print(f"  flagged: {n_flagged:,} of {n_captions:,} captions", end="")
            print(f" ({flags})" if flags else "")
    current = {run.captions(granularity) for granularity in run.config.granularities}
    folder = files.join(run.root, "captions")
    for name in sorted(files.folders(folder)):
        if files.join(folder, name) not in current:
            print(f"{name}: not of this recipe")
    for stage in sorted(files.folders(files.join(run.root, "errors"))):
        print(f"errors in {stage}: {_describe_errors(run.root, stage)}")
    if removed := Removals.read(run.root).describe():
        print(f"removed: {removed}")


def _describe_scored(run: RunFolder) -> str:
    """Lots and pairs whose every measure is there, from their summaries."""
    sources = run.config.sources
    pairs = read_folders([run.pairs(source).folder for source in sources])
    source_to_pairs = dict(zip(sources, pairs, strict=True))
    known = [lot.name for lot in run.lots]
    source_to_names = {s: run.embeddings(s).lot_names(known=known) for s in sources}
    summaries = [
        source_to_pairs[lot.source][lot.name]
        for lot in run.lots
        if lot.name in source_to_names[lot.source]
        and lot.name in source_to_pairs[lot.source]
    ]
    n_pairs = sum(summary["rows"] for summary in summaries)
    n_unreadable = sum(summary.get("unreadable", 0) for summary in summaries)
    return (
        f"{len(summaries):,} of {len(run.lots):,} lots, {n_pairs:,} pairs,"
        f" {n_unreadable:,} of them unreadable"
    )


def _describe_environments(run: RunFolder) -> str:
    """What the environments that embeddings were measured in differ in."""
    folders = {run.embeddings(source).folder for source in run.config.sources}
    names = {lot.name for lot in run.lots}
    found = {
        each
        for summaries in read_folders(sorted(folders))
        for name, summary in summaries.items()
        if name in names
        for each in summary.get(environment.KEY, ())
    }
    return environment.describe_mixture(sorted(found))


def _describe_errors(root: str, stage: str) -> str:
    """Pairs that failed in a stage, by reason, from the summaries of its errors."""
    reason_to_n: collections.Counter[str] = collections.Counter()
    for summary in Summaries.read(error_tables.tables(root, stage).folder).values():
        reason_to_n.update(summary[error_tables.REASONS])
    first = reason_to_n.most_common(_N_REASONS)
    more = len(reason_to_n) - len(first)
    parts = [f"{n:,} x {visible(reason)}" for reason, n in first]
    parts += [f"{more:,} more reasons"] if more else []
    return ", ".join(parts) or "none"
