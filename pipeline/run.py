"""Command line: curates image-text pairs into captioned training shards.

    python -m pipeline.run curate --config FILE.py --output RUN --input GLOB

Flags that are not listed here go to Beam (`--runner`, `--project` ...). Exit codes: 0
done, 1 the run failed, 2 the command or the configuration is wrong, or another run is
at work in the run folder. `status`, `show` and `find` may look on meanwhile.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

from recipes import command_line

command_line.begin(__name__)

# XLA and Beam's workers say a lot that is of no use to a user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
logging.getLogger().addFilter(lambda said: "apitools not found" not in str(said.msg))


def _is_news(said: logging.LogRecord) -> bool:
    """Whether a record says more than the line that ends a run."""
    return not (said.exc_info and isinstance(said.exc_info[1], OSError | ValueError))


logging.getLogger("apache_beam.runners.common").addFilter(_is_news)

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import curate
from pipeline.commands import stage_progress
from pipeline.commands.arguments import (
    LOOKING,
    beam_options,
    configured,
    granularities_of,
    parse,
)
from pipeline.commands.forecast import print_forecast
from pipeline.commands.status import print_status, remove_captions
from pipeline.config import prompts
from pipeline.config.captions import Granularity
from pipeline.config.fingerprint import FORMAT_VERSION, to_json
from pipeline.engine import progress, run_lock, stage_runner
from pipeline.engine.run_folder import CONFIG_NAME, RunFolder, check_format
from pipeline.export.shard_formats import NAME_TO_FORMAT, ShardFormat
from pipeline.forecast import costs as forecast_costs
from pipeline.forecast import from_sample as forecast
from pipeline.models.interfaces import ServiceError
from pipeline.records import VERSION
from pipeline.report import encoder_pictures, find_pairs, page, show_pair
from pipeline.report.run_comparison import OtherRun
from pipeline.selection.duplicates import audit
from pipeline.selection.rules import RuleError
from pipeline.storage import files
from recipes import interrupts

# What a command is told wrong, before any work.
_WRONG = (
    ValueError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)

# The error line says it; a traceback through Beam would hide that.
logging.getLogger("apache_beam.runners.common").addFilter(
    lambda said: not isinstance(said.msg, ServiceError | RuleError)
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; exits with 2 and one line if it cannot be meant.

    A file system that is full, read-only, out of reach or silent is one line and 1.
    """
    try:
        _main(arguments)
    except OSError as error:
        _exit(1, error)


def _main(arguments: Sequence[str] | None) -> None:
    command, beam_arguments = parse(arguments, __doc__, curate.STAGES)
    try:
        options = beam_options(beam_arguments)
        files.use_options(options)
        config = configured(command)
        stage_runner.check_paths(options, command.output, config)
        check_format("--output", command.output)
        run = RunFolder.open(command.output, config)
        curate.check(run)
        is_removal = command.command == "remove"  # of names with fingerprints
        names = () if is_removal else command.granularity
        granularities = granularities_of(run.config, names)
        if command.command == "forecast":
            prices = forecast_costs.read_prices(command.prices)
            sample = forecast.draw_sample(run, command.forecast_shards)
        _check_audit(command, run)
        _warn(curate.changes(run))
        if command.command in LOOKING:
            _look(run, command)
            return
        other = OtherRun.open(command.against) if command.against else None
        _check_pictures(command.pictures)
        if command.command == "report":
            _expect_decisions(run)
    except _WRONG as error:
        _exit(2, error)
    going_on = interrupts.saying(lambda: progress.goes_on(run.root))
    with going_on, _locked(run, command.command):
        if n_removed := run_lock.remove_leftovers(run.root):
            print(f"removed: {n_removed:,} temporary files", file=sys.stderr)
        if is_removal:
            _remove(run, command.granularity)
        elif command.command == "forecast":
            _forecast(run, sample, options, prices)
        elif command.command == "report":
            _report(run, other, command.pictures)
        else:
            shard_format = NAME_TO_FORMAT[command.format]
            _run_stages(command.command, run, options, granularities, shard_format)
            if command.audit:
                _audit(run, command.lookalikes)
            if command.command == "curate":
                _report(run, other, command.pictures)


def _look(run: RunFolder, command: argparse.Namespace) -> None:
    """Prints what `status`, `show` and `find` see."""
    if command.command == "status":
        print_status(run)
        return
    if command.command == "show":
        lines = show_pair.show(run, command.sample_id, command.image)
    else:
        _expect_decisions(run)
        scores = tuple(map(find_pairs.ScoreRange.parse, command.score))
        texts = (command.text, command.reason, command.seed)
        question = find_pairs.Question(*texts, scores)
        lines = find_pairs.lines(run, question, command.like, command.limit)
    for line in lines:
        print(line)


def _expect_decisions(run: RunFolder) -> None:
    if curate.read_ledger(run) is None:
        raise ValueError("decisions are missing: expected `select` to be done before")


def _check_pictures(folder: str) -> None:
    if folder and not encoder_pictures.find(folder):
        raise ValueError(f"--pictures {folder}: expected PNGs of trainer.pictures")


def _report(run: RunFolder, other: OtherRun | None, seen: str) -> None:
    ledger = curate.read_ledger(run)
    assert ledger is not None  # it was looked for, or `select` has written it
    try:
        print(f"report: {page.write(run, ledger, other, seen)}")
    except ValueError as error:
        _exit(1, error)


def _check_audit(command: argparse.Namespace, run: RunFolder) -> None:
    """Raises ValueError on flags of the audit that cannot be meant."""
    if command.lookalikes and not command.audit:
        raise ValueError(f"--lookalikes {command.lookalikes}: expected --audit with it")
    if not command.audit:
        return
    if command.command not in ("curate", "select"):
        raise ValueError(f"{command.command} --audit: expected curate or select")
    audit.check(run)
    audit.check_lookalikes(command.lookalikes)


def _audit(run: RunFolder, lookalikes: str) -> None:
    try:
        found = audit.audit(run, lookalikes)
    except ValueError as error:
        _exit(1, error)
    audit.write(run, found)
    print(found.to_text())


def _locked(run: RunFolder, command: str) -> contextlib.AbstractContextManager[None]:
    try:
        return run_lock.acquire(run.root, command)
    except _WRONG as error:
        _exit(2, error)


def _remove(run: RunFolder, names: Sequence[str]) -> None:
    try:
        remove_captions(run, names)
    except ValueError as error:
        _exit(2, error)


def _forecast(
    run: RunFolder,
    sample: RunFolder,
    options: PipelineOptions,
    prices: forecast_costs.Prices,
) -> None:
    _write_config(run, run.root)
    try:
        print_forecast(run, sample, options, prices)
    except (ValueError, RuntimeError) as error:
        _exit(1, error)


def _run_stages(
    command: str,
    run: RunFolder,
    options: PipelineOptions,
    granularities: Sequence[Granularity],
    shard_format: ShardFormat,
) -> None:
    _write_config(run, run.root)
    stages = curate.STAGES if command == "curate" else (command,)
    doubts = curate.doubts(run) if "select" in stages else ()
    _warn(filter(None, (*map(prompts.doubt, granularities), *doubts)))
    try:
        for stage in stages:
            _run_stage(stage, run, options, granularities, shard_format)
    except (ValueError, RuntimeError) as error:  # the latter of a worker
        _exit(1, error)
    if "export" in stages:
        print(f"shards: {shard_format.path(run.root)}")


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def open_run(arguments: Sequence[str]) -> RunFolder:
    """The run folder that a command line means, to look into it."""
    command, _ = parse(arguments, __doc__, curate.STAGES)
    return RunFolder.open(command.output, configured(command))


def _write_config(run: RunFolder, folder: str) -> None:
    """Says which configuration a folder is of, and what its decisions are."""
    content = {
        "format_version": FORMAT_VERSION,
        "version": VERSION,
        "config": to_json(run.config),
        "decisions": run.decisions_fingerprint,
    }
    path = files.join(folder, CONFIG_NAME)
    files.write(path, json.dumps(content, indent=1).encode() + b"\n")


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
        _write_config(run, run.decisions.folder)
        _warn(curate.not_compared(run))
    print(f"{stage}: {stage_progress.describe(counters)}", flush=True)


def _exit(code: int, error: ValueError | OSError | RuntimeError) -> NoReturn:
    """Ends the process with one line, of a traceback in a message its last."""
    text = str(error).strip()
    if isinstance(error, RuntimeError):
        text = text.rpartition("\n")[2]
    print("error: " + " ".join(text.split()), file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
