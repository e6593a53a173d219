"""Reads all training shards, and names what differs from how they were written.

    python -m trainer.verify --data RUN/tfrecords

Shards are compared with the SHA-256 of their manifest. Every record of a shard that
differs is read, and the damaged ones are named, one per line. The exit code is 0 if all
is as written, and 1 otherwise.
"""

from collections.abc import Sequence

from recipes import command_line

command_line.begin(__name__)

from trainer.data.shards import Shards


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; see the module."""
    flags = _parser().parse_args(arguments)
    with command_line.exits(command_line.WRONG_USAGE, ValueError, OSError):
        shards = Shards(flags.data)
    with command_line.exits(command_line.FAILED, OSError):
        n_wrong = 0
        for line in shards.damages():
            print(line, flush=True)
            n_wrong += 1
    if n_wrong:
        raise SystemExit(command_line.FAILED)
    print(f"{flags.data}: {len(shards)} records, all as the manifest says")


def _parser() -> command_line.Parser:
    parser = command_line.Parser(
        prog="python -m trainer.verify",
        description="Compares training shards with their manifest.",
    )
    parser.add_argument("--data", required=True, metavar="RUN/tfrecords")
    return parser


if __name__ == "__main__":
    main()
