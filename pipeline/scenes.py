"""Command line: draws the demo's web, a crawl of scenes with planted defects.

    python -m pipeline.scenes --output DIR --n-pairs N --rng-seed S

Writes `DIR/crawl` as img2dataset would, `DIR/evaluation` and `DIR/seeds` of clean
scenes with exact masks, and `DIR/truth.parquet`: what is planted in each pair of the
crawl, and what should become of it. Equal flags give equal bytes. Exit codes: 0 done,
1 the disk is full, or another error of files, 2 the command is wrong.
"""

import argparse
import pathlib
from collections.abc import Sequence

from recipes import command_line

command_line.begin(__name__)

from pipeline.demo_web import crawl
from recipes import interrupts, progress_bar


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws a web; exits with 2 and one line if the command is wrong."""
    command = _parser().parse_args(arguments)
    with command_line.exits(command_line.WRONG_USAGE, OSError, ValueError):
        web = crawl.Web(command.n_pairs, command.rng_seed)
        crawl.clear(command.output)
    with (
        command_line.exits(command_line.FAILED, OSError),
        interrupts.saying(lambda: "the same command draws all of it again"),
        progress_bar.watch(
            "scenes", web.n_shards + 2, lambda: len(list(command.output.rglob("*.tar")))
        ),
    ):
        crawl.write(web, command.output)


def _parser() -> command_line.Parser:
    parser = command_line.Parser(
        prog="python -m pipeline.scenes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder")
    parser.add_argument(
        "--n-pairs",
        type=int,
        required=True,
        help=f"of the crawl, up to {crawl.MAX_PAIRS:,}",
    )
    parser.add_argument("--rng-seed", type=int, default=0, help="default: 0")
    return parser


if __name__ == "__main__":
    main()
