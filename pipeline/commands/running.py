"""The commands that run stages, and those that change a run folder.

In: a command with its flags. Out: tables, training shards, the report, the forecast.
One command at a time is at work in a run folder.
"""

import argparse
import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import curate
from pipeline.commands import (
    configuration,
    dry_run,
    preflight,
    run_record,
    stage_progress,
)
from pipeline.commands.attach import attach
from pipeline.commands.beam_flags import beam_options
from pipeline.commands.configuration import WRONG, check_output
from pipeline.commands.preflight import Plan
from pipeline.commands.remove import remove
from pipeline.config import prompts
from pipeline.config.captions import Granularity
from pipeline.engine import progress, run_lock, scored_shards
from pipeline.engine.run_folder import RunFolder, check_format
from pipeline.engine.run_lock import Held
from pipeline.engine.summaries import read_folders
from pipeline.export.shard_formats import NAME_TO_FORMAT, ShardFormat
from pipeline.models.interfaces import ServiceError
from pipeline.report import page, part_stage
from pipeline.report.run_comparison import OtherRun
from pipeline.scoring import missing_tables
from pipeline.selection import checks, ledger, reference_accounts
from pipeline.selection.duplicates import audit
from pipeline.selection.rules import RuleError
from pipeline.storage import files, places, remembered_listings
from pipeline.storage.object_errors import StoreError
from pipeline.storage.object_urls import is_object_url
from recipes import interrupts
from recipes.command_line import FAILED, WRONG_USAGE, exits, warn


def _is_news(said: logging.LogRecord) -> bool:
    """Whether a record of Beam says more than the line that ends a run.

    A traceback through Beam would hide that line.
    """
    is_known = isinstance(said.msg, ServiceError | RuleError)
    error = said.exc_info[1] if said.exc_info else None
    return not (is_known or isinstance(error, OSError | ValueError))


logging.getLogger("apache_beam.runners.common").addFilter(_is_news)


def run(command: argparse.Namespace, beam_flags: Sequence[str]) -> None:
    """Checks everything that can be checked, and then does what a command asks for."""
    with exits(WRONG_USAGE, *WRONG):
        options = beam_options(beam_flags)
        files.use_options(options)
        check_output(command.output)
    if command.command == "attach":
        attach(command)
        return
    with remembered_listings.kept():
        _run(command, options)


def _run(command: argparse.Namespace, options: PipelineOptions) -> None:
    with exits(WRONG_USAGE, *WRONG):
        places.check_output("--output", command.output)
        plan = _make_plan(command, options)
        if command.command != "remove":
            preflight.check(plan)
            warn(scored_shards.describe_changes(plan.run))
            for line in plan.run.left_out:
                print(line)
        forecast = _open_forecast(plan, options)
        if command.command == "report" and ledger.read(plan.run) is None:
            raise ValueError(
                "decisions are missing: expected `select` to be done before"
            )
    opened = plan.run
    if command.dry_run:
        is_all = command.command == "curate"
        for line in dry_run.describe(opened, plan.granularities, with_stages=is_all):
            print(line)
        return
    going_on = interrupts.saying(lambda: progress.resume_hint(opened.root))
    with (
        going_on,
        _locked(opened, command.command),
        remembered_listings.kept(),  # what another run has written is listed
    ):
        _remove_leftovers(opened.root)
        if command.command == "remove":
            reopen = functools.partial(_open_listed, command)
            remove(command, reopen(), reopen, options)
        elif forecast is not None:
            _record(opened)
            with exits(FAILED, ValueError, RuntimeError):
                forecast()
        elif command.command == "report":
            _report(opened, command, options)
        else:
            _run_stages(plan, options)
        if is_object_url(opened.root):  # uploads whose first answer was lost
            _remove_leftovers(opened.root)


def _remove_leftovers(root: str) -> None:
    """What killed writers left; who may not see uploads in a store is only told so."""
    try:
        n_removed = run_lock.remove_leftovers(root)
    except StoreError as error:
        warn([f"uploads that killed runs may have left stay open: {error}"])
        return
    if n_removed:
        print(f"removed: {n_removed:,} temporary files", file=sys.stderr)


def _make_plan(command: argparse.Namespace, options: PipelineOptions) -> Plan:
    if command.command in ("report", "remove"):
        check_format("--output", command.output)
        is_listed = command.command == "remove"
        run = configuration.open_run(command, is_listed=is_listed)
        return Plan.of(command, run)
    return Plan.of(command, preflight.open_run(command, options))


def _open_listed(command: argparse.Namespace) -> RunFolder:
    """Opens a run with the lots of its last command."""
    return configuration.open_run(command, is_listed=True)


def _open_forecast(plan: Plan, options: PipelineOptions) -> Callable[[], None] | None:
    """Reads the prices and draws the sample; None of another command."""
    command = plan.command
    if command.command != "forecast":
        return None
    # With SciPy: only this command pays for its import.
    from pipeline.commands.forecast import print_forecast
    from pipeline.forecast.costs import read_prices
    from pipeline.forecast.from_sample import N_SHARDS, draw_sample

    prices = read_prices(command.prices)
    n_shards = command.forecast_shards
    sample = draw_sample(plan.run, N_SHARDS if n_shards is None else n_shards)
    return lambda: print_forecast(plan.run, sample, options, prices)


def _locked(run: RunFolder, command: str) -> contextlib.AbstractContextManager[Held]:
    # A folder that may not be written to is a failed run, not a wrong command; of a
    # store, where rights are part of the address, it is the latter.
    is_remote = files.is_remote(run.root)
    wrong = (error for error in WRONG if is_remote or error is not PermissionError)
    with exits(WRONG_USAGE, *wrong):
        return run_lock.acquire(run.root, command)


def _run_stages(plan: Plan, options: PipelineOptions) -> None:
    command, opened = plan.command, plan.run
    shard_format = NAME_TO_FORMAT[command.format]
    _record(opened)
    stages = tuple(curate.STAGES) if command.command == "curate" else plan.stages
    doubts = checks.doubts(opened) if "select" in stages else ()
    warn(filter(None, (*map(prompts.doubt, plan.granularities), *doubts)))
    with exits(FAILED, ValueError, RuntimeError):  # the latter of a worker
        if command.command == "retry-failed":
            n_failed = curate.retry_failed(opened, plan.granularities)
            print(f"retry-failed: {n_failed:,} that failed", flush=True)
        for stage in stages:
            _run_stage(stage, opened, options, plan.granularities, shard_format)
    if "export" in stages:
        print(f"shards: {shard_format.path(opened.root)}")
    if command.audit:
        with exits(FAILED, ValueError):
            found = audit.audit(opened, command.lookalikes)
        audit.write(opened, found)
        print(found.to_text())
    if command.command == "curate":
        _report(opened, command, options)


def _record(run: RunFolder) -> None:
    """Writes down of which recipe and of which lots the run is."""
    run.write_plan()
    run_record.write(run, run.root)


def _run_stage(
    stage: str,
    run: RunFolder,
    options: PipelineOptions,
    granularities: Sequence[Granularity],
    shard_format: ShardFormat,
) -> None:
    work = stage_progress.work_of(stage, run, granularities, shard_format)
    with progress.watch(run.root, stage, work) as watched:
        if stage == "caption":
            counters = curate.caption(run, options, granularities)
        elif stage == "export":
            counters = curate.export_shards(run, options, shard_format)
        else:
            counters = curate.STAGES[stage](run, options)
    if stage_progress.has_work(counters):
        watched.record(counters, stage_progress.n_rows(stage, counters))
    if stage == "select":
        run_record.write(run, run.decisions.folder)
        warn(reference_accounts.warnings(run, ledger.read(run) or {}))
    for summaries in read_folders(sorted(summarized_folders(stage, run))):
        summaries.write_cache()
    print(f"{stage}: {stage_progress.describe(counters)}", flush=True)
    if counters.get("captions_failed") or counters.get("images_failed"):
        print(f"{stage}: which failed, and why: {files.join(run.root, 'errors')}")


def summarized_folders(stage: str, run: RunFolder) -> set[str]:
    """Folders of tables whose summaries commands read after a stage."""
    if stage == "score":
        of_sources = missing_tables.tables_by_source(run).values()
        return {one.folder for tables in of_sources for one in tables.values()}
    if stage == "select":
        return {run.decisions.folder}
    if stage == "caption" and run.config.granularities:
        return {run.flags.folder, *map(run.captions, run.config.granularities)}
    return set()


def _report(
    run: RunFolder, command: argparse.Namespace, options: PipelineOptions
) -> None:
    """Writes the report of decisions, whose ledger becomes that of the run again."""
    other = OtherRun.open(command.against) if command.against else None
    counts = ledger.restore_ledger(run)
    with exits(FAILED, ValueError, RuntimeError):  # the latter of a worker
        part_stage.make_missing(run, counts, options)
        print(f"report: {page.write(run, counts, other, command.pictures)}")
