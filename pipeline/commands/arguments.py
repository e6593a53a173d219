"""What the words of a command line mean: flags, recipe, Beam's options."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterable, Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.config.captions import Granularity
from pipeline.config.curation import CurationConfig, ImageTextSource
from pipeline.config.recipes import load_config
from pipeline.export.shard_formats import NAME_TO_FORMAT, TFRECORD
from pipeline.forecast import costs as forecast_costs
from pipeline.forecast import from_sample as forecast
from pipeline.report import find_pairs
from pipeline.storage.patterns import Patterns
from recipes import command_line
from recipes.assignments import override

_FLAG_TO_ROLE = {"input": "sources", "eval": "evaluation_sets", "seeds": "seed_sets"}
LOOKING = ("status", "show", "find")  # they write nothing that another run could


def parse(
    arguments: Sequence[str] | None, description: str | None, stages: Iterable[str]
) -> tuple[argparse.Namespace, list[str]]:
    """The flags of a command, and those that are left for Beam.

    `show` comes first if it is meant: what follows it is no flag of Beam.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser(description, stages)
    if words[:1] == ["show"]:
        parser.add_argument("sample_id", metavar="SAMPLE_ID")
    return parser.parse_known_args(words)


def _parser(description: str | None, stages: Iterable[str]) -> argparse.ArgumentParser:
    parser = command_line.Parser(
        script="curate",
        prog="python -m pipeline.run",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = ("curate", *stages, "report", "forecast", "remove", *LOOKING)
    parser.add_argument(
        "command",
        choices=commands,
        help="all stages and the report, one stage, the report, what a run will keep"
        " and cost, remove captions, what is there, everything known of one pair, or"
        " the pairs that are asked for",
    )
    parser.add_argument("--config", required=True, help="recipe: a Python file")
    parser.add_argument("--output", required=True, help="run folder")
    parser.add_argument(
        "--input",
        metavar="GLOB",
        action="append",
        default=[],
        help="source shards; may be repeated",
    )
    parser.add_argument(
        "--set",
        metavar="a.b=value",
        action="append",
        default=[],
        help="changes a field of the recipe; may be repeated",
    )
    for flag in ("eval", "seeds"):
        parser.add_argument(
            f"--{flag}",
            metavar="NAME=GLOB",
            action="append",
            default=[],
            help=f"{'evaluation' if flag == 'eval' else 'curated seed'} images; may be"
            " repeated, also for more files of one set",
        )
    _add_stages(parser)
    _add_forecast(parser)
    _add_looking(parser)
    return parser


def _add_stages(parser: argparse.ArgumentParser) -> None:
    """Flags of single stages."""
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


def _add_forecast(parser: argparse.ArgumentParser) -> None:
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


def _add_looking(parser: argparse.ArgumentParser) -> None:
    """The flags of report, show and find."""
    parser.add_argument(
        "--against",
        metavar="RUN",
        default="",
        help="for report: compare with that run, or with RUN/decisions/FINGERPRINT",
    )
    parser.add_argument(
        "--pictures",
        metavar="FOLDER",
        default="",
        help="for report: what an encoder sees, drawn by trainer.pictures (default:"
        " RUN/pictures, if it is there)",
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
    scores = ", ".join(find_pairs.SCORES)
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
    parser = command_line.OneLineParser(
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
    output = command.output
    if not output or (os.path.exists(output) and not os.path.isdir(output)):
        raise ValueError(f"--output {output!r}: expected a folder")
    if output != output.encode(errors="replace").decode():  # Beam's records are UTF-8
        raise ValueError(f"--output {output!r}: expected a name in UTF-8")
    config = load_config(command.config)
    if command.input:
        config = dataclasses.replace(config, sources=_sources(config, command.input))
    config = dataclasses.replace(
        config,
        evaluation_sets=_with_sets(config.evaluation_sets, "--eval", command.eval),
        seed_sets=_with_sets(config.seed_sets, "--seeds", command.seeds),
    )
    config = _overridden(config, command)
    if not config.sources:
        raise ValueError("sources=(): expected --input GLOB, or sources in the recipe")
    return config


def _overridden(config: CurationConfig, command: argparse.Namespace) -> CurationConfig:
    """Applies `--set`; raises ValueError where another flag says the same."""
    changed = override(config, command.set)
    for flag, role in _FLAG_TO_ROLE.items():
        is_said = bool(getattr(command, flag))
        if is_said and _patterns(config, role) != _patterns(changed, role):
            assignment = next(a for a in command.set if a.strip().startswith(role))
            raise ValueError(f"--set {assignment}: expected it without --{flag}")
    return changed


def _patterns(config: CurationConfig, role: str) -> list[Patterns]:
    return [source.pattern for source in getattr(config, role)]


def _sources(
    config: CurationConfig, patterns: Sequence[str]
) -> tuple[ImageTextSource, ...]:
    """The source of the recipe, read from elsewhere."""
    if len(config.sources) > 1:
        raise ValueError(f"--input {patterns[0]}: expected a recipe with one source")
    source = config.sources[0] if config.sources else ImageTextSource("web", "")
    return (_read_from(source, patterns),)


def _read_from(source: ImageTextSource, patterns: Sequence[str]) -> ImageTextSource:
    pattern = patterns[0] if len(patterns) == 1 else tuple(patterns)
    return dataclasses.replace(source, pattern=pattern)


def _with_sets(
    sets: tuple[ImageTextSource, ...], flag: str, assignments: Sequence[str]
) -> tuple[ImageTextSource, ...]:
    """Adds image sets, or reads those of the recipe from elsewhere."""
    name_to_patterns: dict[str, list[str]] = {}
    for assignment in assignments:
        name, _, pattern = assignment.partition("=")
        if not name or not pattern:
            raise ValueError(f"{flag} {assignment}: expected NAME=GLOB")
        name_to_patterns.setdefault(name, []).append(pattern)
    name_to_set = {image_set.name: image_set for image_set in sets}
    for name, patterns in name_to_patterns.items():
        known = name_to_set.get(name, ImageTextSource(name, "", needs_alt_text=False))
        name_to_set[name] = _read_from(known, patterns)
    return tuple(name_to_set.values())


def granularities_of(
    config: CurationConfig, names: Sequence[str]
) -> tuple[Granularity, ...]:
    name_to_granularity = {g.name: g for g in config.granularities}
    for name in names:
        if name not in name_to_granularity:
            expected = ", ".join(name_to_granularity)
            raise ValueError(f"--granularity {name}: expected one of {expected}")
    chosen = dict.fromkeys(names or name_to_granularity)
    return tuple(name_to_granularity[name] for name in chosen)
