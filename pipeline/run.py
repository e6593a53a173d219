"""Command line: curates image-text pairs into captioned training shards.

    python -m pipeline.run curate --config FILE.py --output RUN --input GLOB

Flags that are not listed here go to Beam (`--runner`, `--project` ...). Exit codes: 0
done, 1 the run failed, 2 the command or the configuration is wrong, or another run is
at work in the run folder. `status`, `show` and `find` may look on meanwhile.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

# XLA and Beam's workers say a lot that is of no use to a user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import (
    audit,
    curate,
    files,
    finding,
    forecast,
    forecast_costs,
    forecast_text,
    lock,
    lookup,
    prompts,
    run_progress,
    runners,
    scale,
    stage_work,
)
from pipeline.config import (
    FORMAT_VERSION,
    CurationConfig,
    Granularity,
    ImageTextSource,
    load_config,
    override,
    to_json,
)
from pipeline.report import page
from pipeline.report.changes import OtherRun
from pipeline.run_folder import RunFolder
from pipeline.shard_formats import NAME_TO_FORMAT, TFRECORD, ShardFormat

_CONFIG_NAME = "config.json"
_LOOKING = ("status", "show", "find")  # they write nothing that another run could


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; exits with 2 and one line if it cannot be meant.

    A file system that is full, read-only, out of reach or silent is one line and 1.
    """
    try:
        _main(arguments)
    except OSError as error:
        _exit(1, error)


def _main(arguments: Sequence[str] | None) -> None:
    command, beam_arguments = _parse(arguments)
    try:
        options = beam_options(beam_arguments)
        files.use_options(options)
        config = configured(command)
        runners.check_paths(options, command.output, config)
        run = RunFolder.open(command.output, config)
        curate.check(run)
        is_removal = command.command == "remove"  # of names with fingerprints
        names = () if is_removal else command.granularity
        granularities = _granularities(run.config, names)
        if command.command == "forecast":
            prices = forecast_costs.read_prices(command.prices)
            sample = forecast.sampled(run, command.forecast_shards)
        _check_audit(command, run)
        _check_format(run)
        if command.command in _LOOKING:
            _look(run, command)
            return
        other = OtherRun.open(command.against) if command.against else None
        if command.command == "report":
            _expect_decisions(run)
    except ValueError as error:
        _exit(2, error)
    with _locked(run, command.command):
        if n_removed := lock.remove_leftovers(run.root):
            print(f"removed: {n_removed:,} temporary files", file=sys.stderr)
        if is_removal:
            _remove(run, command.granularity)
        elif command.command == "forecast":
            _forecast(run, sample, options, prices)
        elif command.command == "report":
            _report(run, other)
        else:
            shard_format = NAME_TO_FORMAT[command.format]
            _run_stages(command.command, run, options, granularities, shard_format)
            if command.audit:
                _audit(run, command.lookalikes)
            if command.command == "curate":
                _report(run, other)


def _parse(
    arguments: Sequence[str] | None,
) -> tuple[argparse.Namespace, list[str]]:
    """`show` comes first if it is meant: what follows it is no flag of Beam."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    if words[:1] == ["show"]:
        parser.add_argument("sample_id", metavar="SAMPLE_ID")
    return parser.parse_known_args(words)


def _look(run: RunFolder, command: argparse.Namespace) -> None:
    """Prints what `status`, `show` and `find` see."""
    if command.command == "status":
        print_status(run)
        return
    if command.command == "show":
        lines = lookup.show(run, command.sample_id, command.image)
    else:
        _expect_decisions(run)
        scores = tuple(map(finding.ScoreRange.parse, command.score))
        texts = (command.text, command.reason, command.seed)
        question = finding.Question(*texts, scores)
        lines = finding.lines(run, question, command.like, command.limit)
    for line in lines:
        print(line)


def _expect_decisions(run: RunFolder) -> None:
    if curate.ledger(run) is None:
        raise ValueError("decisions are missing: expected `select` to be done before")


def _report(run: RunFolder, other: OtherRun | None) -> None:
    ledger = curate.ledger(run)
    assert ledger is not None  # it was looked for, or `select` has written it
    try:
        print(f"report: {page.write(run, ledger, other)}")
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
        return lock.acquire(run.root, command)
    except lock.LockedError as error:
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
    for doubt in filter(None, (*map(prompts.doubt, granularities), *doubts)):
        print(f"warning: {doubt}", file=sys.stderr)
    try:
        for stage in stages:
            _run_stage(stage, run, options, granularities, shard_format)
    except (ValueError, RuntimeError) as error:  # the latter of a worker
        _exit(1, error)
    if "export" in stages:
        print(f"shards: {run.shards(shard_format)}")


def open_run(arguments: Sequence[str]) -> RunFolder:
    """The run folder that a command line means, to look into it."""
    command, _ = _parse(arguments)
    return RunFolder.open(command.output, configured(command))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = ("curate", *curate.STAGES, "report", "forecast", "remove", *_LOOKING)
    parser.add_argument(
        "command",
        choices=commands,
        help="all stages and the report, one stage, the report, what a run will keep"
        " and cost, remove captions, what is there, everything known of one pair, or"
        " the pairs that are asked for",
    )
    parser.add_argument("--config", required=True, help="recipe: a Python file")
    parser.add_argument("--output", required=True, help="run folder")
    parser.add_argument("--input", default="", help="glob of source shards")
    for flag in ("eval", "seeds"):
        parser.add_argument(
            f"--{flag}",
            metavar="NAME=GLOB",
            action="append",
            default=[],
            help=f"{'evaluation' if flag == 'eval' else 'curated seed'} images",
        )
    parser.add_argument(
        "--audit",
        action="store_true",
        help="after select: tells what share of copies of evaluation images is found",
    )
    parser.add_argument(
        "--lookalikes",
        metavar="FILE.parquet",
        default="",
        help="for --audit: pairs `a`, `b` of different images, by key or encoded",
    )
    parser.add_argument("--set", metavar="a.b=value", action="append", default=[])
    parser.add_argument(
        "--granularity",
        action="append",
        default=[],
        metavar="NAME",
        help="caption this granularity alone; may be repeated (for remove, a name with"
        " its fingerprint, as status shows it)",
    )
    parser.add_argument(
        "--format",
        choices=sorted(NAME_TO_FORMAT),
        default=TFRECORD.name,
        help="of the shards that export writes (%(default)s)",
    )
    parser.add_argument(
        "--forecast-shards",
        metavar="N",
        type=int,
        default=forecast.N_SHARDS,
        help="shards of each source that forecast samples (%(default)s)",
    )
    keys = ", ".join(field.name for field in dataclasses.fields(forecast_costs.Prices))
    parser.add_argument(
        "--prices", metavar="FILE.json", default="", help=f"for forecast: {keys}"
    )
    _add_looking(parser)
    return parser


def _add_looking(parser: argparse.ArgumentParser) -> None:
    """The flags of report, show and find."""
    parser.add_argument(
        "--against",
        metavar="RUN",
        default="",
        help="for report: compare with that run, or with RUN/decisions/FINGERPRINT",
    )
    parser.add_argument(
        "--image", metavar="FILE", default="", help="for show: write the image there"
    )
    for flag, meaning in (
        ("text", "pairs with this in their alt text"),
        ("reason", "pairs with this outcome"),
        ("seed", "pairs that this seed set wants"),
    ):
        parser.add_argument(f"--{flag}", default="", help=f"for find: {meaning}")
    scores = ", ".join(finding.SCORES)
    parser.add_argument(
        "--score",
        metavar="NAME=LOW:HIGH",
        action="append",
        default=[],
        help=f"for find: pairs with a score in this range: {scores}",
    )
    parser.add_argument(
        "--like",
        metavar="IMAGE",
        default="",
        help="for find: pairs with images nearest to this file or sample id",
    )
    parser.add_argument(
        "--limit", metavar="N", type=int, default=20, help="for find (%(default)s)"
    )


def beam_options(arguments: Sequence[str]) -> PipelineOptions:
    """Options of Beam; raises ValueError on a flag that Beam does not know."""
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, conflict_handler="resolve"
    )
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)  # how Beam itself reads its flags
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise ValueError(f"{unknown[0]}: expected a flag of --help or of Beam")
    return PipelineOptions(list(arguments))


def configured(command: argparse.Namespace) -> CurationConfig:
    """The recipe with everything that the command line adds to it."""
    config = load_config(command.config)
    if command.input:
        config = dataclasses.replace(config, sources=_sources(config, command.input))
    config = dataclasses.replace(
        config,
        evaluation_sets=_with_sets(config.evaluation_sets, "--eval", command.eval),
        seed_sets=_with_sets(config.seed_sets, "--seeds", command.seeds),
    )
    for assignment in command.set:
        config = override(config, assignment)
    if not config.sources:
        raise ValueError("sources=(): expected --input GLOB, or sources in the recipe")
    return config


def _sources(config: CurationConfig, pattern: str) -> tuple[ImageTextSource, ...]:
    """The source of the recipe, read from elsewhere."""
    if len(config.sources) > 1:
        raise ValueError(f"--input {pattern}: expected a recipe with one source")
    source = config.sources[0] if config.sources else ImageTextSource("web", "")
    return (dataclasses.replace(source, pattern=pattern),)


def _with_sets(
    sets: tuple[ImageTextSource, ...], flag: str, assignments: Sequence[str]
) -> tuple[ImageTextSource, ...]:
    """Adds image sets, or replaces those of the same name."""
    name_to_set = {image_set.name: image_set for image_set in sets}
    for assignment in assignments:
        name, _, pattern = assignment.partition("=")
        if not name or not pattern:
            raise ValueError(f"{flag} {assignment}: expected NAME=GLOB")
        known = name_to_set.get(name, ImageTextSource(name, "", needs_alt_text=False))
        name_to_set[name] = dataclasses.replace(known, pattern=pattern)
    return tuple(name_to_set.values())


def _granularities(
    config: CurationConfig, names: Sequence[str]
) -> tuple[Granularity, ...]:
    name_to_granularity = {g.name: g for g in config.granularities}
    for name in names:
        if name not in name_to_granularity:
            expected = ", ".join(name_to_granularity)
            raise ValueError(f"--granularity {name}: expected one of {expected}")
    return tuple(name_to_granularity[name] for name in names or name_to_granularity)


def _check_format(run: RunFolder) -> None:
    """Raises ValueError on a folder of another format."""
    path = files.join(run.root, _CONFIG_NAME)
    if files.is_file(path):
        found = json.loads(files.read(path)).get("format_version")
        if found != FORMAT_VERSION:
            raise ValueError(
                f"--output {run.root}: expected format version {FORMAT_VERSION}, "
                f"found {found}"
            )


def _write_config(run: RunFolder, folder: str) -> None:
    """Says which configuration a folder is of, and what its decisions are."""
    content = {
        "format_version": FORMAT_VERSION,
        "config": to_json(run.config),
        "decisions": run.decisions_fingerprint,
    }
    path = files.join(folder, _CONFIG_NAME)
    files.write(path, json.dumps(content, indent=1).encode() + b"\n")


def _run_stage(
    stage: str,
    run: RunFolder,
    options: PipelineOptions,
    granularities: Sequence[Granularity],
    shard_format: ShardFormat,
) -> None:
    work = stage_work.work_of(stage, run, granularities, shard_format)
    with run_progress.watch(run.root, stage, work) as watched:
        if stage == "caption":
            counters = curate.caption(run, options, granularities)
        elif stage == "export":
            counters = curate.export_shards(run, options, shard_format)
        else:
            counters = curate.STAGES[stage](run, options)
    if stage_work.has_work(counters):
        watched.record(counters, stage_work.n_rows(stage, counters))
    if stage == "select":
        _write_config(run, run.decisions.folder)
    print(f"{stage}: {stage_work.describe(counters)}", flush=True)


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
    for name in names:
        files.delete_folder(files.join(folder, name))
        print(f"removed: {files.join(folder, name)}")


def print_status(run: RunFolder) -> None:
    """What is there: scored shards, decisions, captions by granularity and flag.

    Captions of other prompts, models or recipes stay until they are removed by name.
    """
    if at_work := run_progress.describe(run.root, time.time()):
        print(at_work)
    scored = [run.embeddings(unit.source).path(unit.name) for unit in run.units]
    print(f"scored: {sum(map(files.is_file, scored))} of {len(scored)} shards")
    ledger = curate.ledger(run)
    print(f"selected: {json.dumps(ledger, indent=1) if ledger else 'no'}")
    flag_counts = curate.flag_counts(run)
    for granularity in run.config.granularities:
        n_captioned, n_kept = curate.coverage(run, granularity)
        fingerprint = run.granularity_fingerprint(granularity)
        print(f"{granularity.name}-{fingerprint}: {n_captioned:,} of {n_kept:,} kept")
        if found := flag_counts.get(granularity.name):
            flags = ", ".join(
                f"{name} {n:,}" for name, n in sorted(found.flag_to_count.items())
            )
            n_flagged, n_captions = found.n_flagged, found.n_captions
            print(f"  flagged: {n_flagged:,} of {n_captions:,} captions", end="")
            print(f" ({flags})" if flags else "")
    current = {run.captions(granularity) for granularity in run.config.granularities}
    folder = files.join(run.root, "captions")
    for name in sorted(files.folders(folder)):
        if files.join(folder, name) not in current:
            print(f"{name}: not of this recipe")


def print_forecast(
    run: RunFolder,
    sample: RunFolder,
    options: PipelineOptions,
    prices: forecast_costs.Prices,
) -> None:
    """Tells what a sample says of the whole run, and writes `RUN/forecast.json`.

    Scores and selects the sample where it is not.
    """
    path = files.join(run.root, "forecast.json")
    stage_to_time = forecast_costs.read_times(path, sample)
    stage_to_time |= _timed_stages(run.root, sample, options)
    with forecast_costs.Stopwatch() as watch:
        figures = forecast.measure(sample)
    stage_to_time |= watch.times("export", forecast.n_records(figures), sample)
    found = forecast.forecast(run, sample, figures)
    costs = forecast_costs.costs(found, stage_to_time, prices)
    per_pair = scale.PairCosts.of(sample, found, stage_to_time)
    rows = [scale.scale_row(per_pair, n_pairs) for n_pairs in scale.N_PAIRS]
    files.write(path, forecast_text.to_json(found, stage_to_time, costs, rows))
    print(forecast_text.to_text(found, stage_to_time, costs, rows))


def _timed_stages(
    run_root: str, sample: RunFolder, options: PipelineOptions
) -> dict[str, forecast_costs.StageTime]:
    """Runs what the sample lacks; gives the times of stages that had work to do."""
    stage_to_time: dict[str, forecast_costs.StageTime] = {}
    for stage, work in (("score", curate.score), ("select", curate.select_sample)):
        with (
            run_progress.watch(run_root, stage, stage_work.work_of(stage, sample, ())),
            forecast_costs.Stopwatch() as watch,
        ):
            counters = work(sample, options)
        n_pairs = forecast_costs.n_pairs_of(stage, counters)
        if runners.is_local(options):
            stage_to_time |= watch.times(stage, n_pairs, sample)
    return stage_to_time


def _exit(code: int, error: ValueError | OSError | RuntimeError) -> NoReturn:
    """Ends the process with one line, of a traceback in a message its last."""
    text = str(error).strip()
    if isinstance(error, RuntimeError):
        text = text.rpartition("\n")[2]
    print("error: " + " ".join(text.split()), file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
