"""The words of a command line: one parser for each command, with its own flags.

Nothing here imports Beam or a model, so that help and completion are instant.
"""

import argparse
import sys
from collections.abc import Sequence

from pipeline.export.shard_formats import NAME_TO_FORMAT, TFRECORD
from recipes import command_line

STAGES = ("score", "select", "caption", "export")
LOOKING = ("status", "show", "find")  # they write nothing that another run could
# These need no --config: they read the recipe of the run folder.
RECORDED = (*LOOKING, "report", "forecast", "remove", "attach", "retry-failed")

_COMMAND_TO_HELP = {
    "curate": "all four stages, then the report",
    "score": "measure every pair: what it is, its language, its embedding",
    "select": "decide which pairs to keep",
    "caption": "caption the kept images",
    "export": "write training shards",
    "report": "write RUN/report/index.html",
    "forecast": "say what a run will keep and cost, from a sample of it",
    "remove": "remove pairs, shards, sources or captions, and keep them out",
    "retry-failed": "caption and export again what failed before",
    "attach": "go on with a job whose launcher is gone",
    "status": "say what is there",
    "show": "say everything that is known of one pair",
    "find": "list the pairs that fit a question",
}
_FLAGS_OF_RUNS = (
    " Flags that are not listed go to Beam (`--runner`, `--project`, ...): see its"
    " pages on pipeline options."
)
_FLAGS_OF_RECORDED = (
    " The recipe, inputs and settings are those of RUN/config.json, unless flags"
    " name others."
)
_WITHOUT_VALUE = (
    *("--audit", "--cancel", "--dry-run", "--forget"),
    *("-h", "--help", "--version"),
)


def parse(
    arguments: Sequence[str] | None, description: str | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """Returns the flags of a command, and the words that are left for Beam.

    The command may stand anywhere among its flags.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    place = _place_of_command(words)
    if place is not None:
        words = [words[place], *words[:place], *words[place + 1 :]]
    parser = make_parser(description)
    parsed, others = parser.parse_known_args(words)
    for word in others:
        flag = word.partition("=")[0]
        if owners := _commands_with(parser, flag):
            names = " or ".join(owners)
            parser.error(f"{flag}: expected {names}, not {parsed.command}")
    parsed = argparse.Namespace(**_DEFAULTS | vars(parsed))
    return parsed, others


def _commands_with(parser: argparse.ArgumentParser, flag: str) -> list[str]:
    """The commands that have a flag."""
    (commands,) = (
        action.choices
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return [
        name for name, one in commands.items() if flag in one._option_string_actions
    ]


def _place_of_command(words: Sequence[str]) -> int | None:
    """Where the first word stands that is no flag and no value of one."""
    place = 0
    while place < len(words):
        word = words[place]
        if not word.startswith("-"):
            return place
        place += 1 if "=" in word or word in _WITHOUT_VALUE else 2
    return None


def make_parser(description: str | None = None) -> argparse.ArgumentParser:
    """Returns the parser of all commands, as completion needs it."""
    parser = command_line.Parser(
        script="curate",
        prog="python -m pipeline.run",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        dest="command", metavar="command", title="commands", required=True
    )
    for name, text in _COMMAND_TO_HELP.items():
        starts_jobs = ("curate", *STAGES, "forecast", "remove", "retry-failed")
        is_run = name in starts_jobs
        about = _FLAGS_OF_RECORDED if name in RECORDED else ""
        about += _FLAGS_OF_RUNS if is_run else ""
        described = f"{text[0].upper()}{text[1:]}.{about}"
        one = commands.add_parser(name, help=text, description=described)
        _add_common(one, is_recorded=name in RECORDED)
        for add in _COMMAND_TO_FLAGS.get(name, ()):
            add(one)
    return parser


def _add_common(parser: argparse.ArgumentParser, *, is_recorded: bool) -> None:
    """Adds the flags that say which run is meant."""
    parser.add_argument(
        "--config", required=not is_recorded, default="", help="recipe: a Python file"
    )
    parser.add_argument("--output", required=True, help="run folder")
    _add_repeated(parser, "--input", "GLOB", "source shards; may be repeated")
    _add_repeated(
        parser,
        "--set",
        "a.b=value",
        "changes a field of the recipe; may be repeated",
    )
    for flag, kind in (("--eval", "evaluation"), ("--seeds", "curated seed")):
        text = f"{kind} images; may be repeated, also for more files of one set"
        _add_repeated(parser, flag, "NAME=GLOB", text)


def _add_repeated(
    parser: argparse.ArgumentParser, flag: str, metavar: str, text: str
) -> None:
    parser.add_argument(flag, metavar=metavar, action="append", default=[], help=text)


def _add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--audit",
        action="store_true",
        help="after select: say what share of copies of evaluation images is found",
    )
    parser.add_argument(
        "--lookalikes",
        metavar="FILE.parquet",
        default="",
        help="for --audit: pairs `a`, `b` of different images, by key or encoded",
    )


def _add_granularity(parser: argparse.ArgumentParser) -> None:
    text = "caption this granularity alone; may be repeated"
    _add_repeated(parser, "--granularity", "NAME", text)


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be made and what captions would cost, and make nothing",
    )


def _add_removed(parser: argparse.ArgumentParser) -> None:
    for flag, metavar, text in (
        ("granularity", "NAME-FINGERPRINT", "captions to remove, as status shows them"),
        (
            "pairs",
            "FILE",
            "pairs to remove and keep out: a text file with a URL, host:NAME,"
            " image_hash:HEX or sample_id:HEX in each line",
        ),
        ("source", "NAME", "source whose shards to remove and keep out"),
        ("shards", "GLOB", "shards to remove and keep out, still listed or not"),
    ):
        _add_repeated(parser, f"--{flag}", metavar, f"{text}; may be repeated")


def _add_attach(parser: argparse.ArgumentParser) -> None:
    for flag, meaning in (
        ("cancel", "cancel the job and wait for its end"),
        ("forget", "of a job that is gone with its engine: ask nobody for it any more"),
    ):
        parser.add_argument(f"--{flag}", action="store_true", help=meaning)


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=sorted(NAME_TO_FORMAT),
        default=TFRECORD.name,
        help="of the training shards (%(default)s)",
    )


def _add_forecast(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--forecast-shards",
        metavar="N",
        type=int,
        help="shards of each source that are sampled",
    )
    parser.add_argument(
        "--prices",
        metavar="FILE.json",
        default="",
        help="an object of prices; an unknown name is answered with the known ones",
    )


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--against",
        metavar="RUN",
        default="",
        help="compare with that run, or with RUN/decisions/FINGERPRINT",
    )
    parser.add_argument(
        "--pictures",
        metavar="FOLDER",
        default="",
        help="what an encoder sees, drawn by trainer.pictures (default: RUN/pictures,"
        " if it is there)",
    )


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sample_id", metavar="SAMPLE_ID")
    parser.add_argument(
        "--image", metavar="FILE", default="", help="write the image there"
    )


def _add_find(parser: argparse.ArgumentParser) -> None:
    for flag, meaning in (
        ("text", "with this in their alt text"),
        ("reason", "with this outcome"),
        ("seed", "that this seed set wants"),
    ):
        parser.add_argument(f"--{flag}", default="", help=f"pairs {meaning}")
    text = "pairs with a score in this range, such as alignment_score=0.1:0.2"
    _add_repeated(parser, "--score", "NAME=LOW:HIGH", text)
    parser.add_argument(
        "--like",
        metavar="IMAGE",
        default="",
        help="pairs with images nearest to this file or sample id",
    )
    parser.add_argument(
        "--limit", metavar="N", type=int, default=20, help="pairs (%(default)s)"
    )


_COMMAND_TO_FLAGS = {
    "curate": (_add_audit, _add_granularity, _add_format, _add_report, _add_dry_run),
    "select": (_add_audit,),
    "caption": (_add_granularity, _add_dry_run),
    "export": (_add_format,),
    "retry-failed": (_add_granularity, _add_format),
    "report": (_add_report,),
    "forecast": (_add_forecast,),
    "remove": (_add_removed,),
    "attach": (_add_attach,),
    "show": (_add_show,),
    "find": (_add_find,),
}
# Of flags that a command does not have, so that code may ask for all.
_DEFAULTS = {
    "audit": False,
    "dry_run": False,
    "lookalikes": "",
    "granularity": [],
    "pairs": [],
    "source": [],
    "shards": [],
    "format": TFRECORD.name,
    "against": "",
    "pictures": "",
}
