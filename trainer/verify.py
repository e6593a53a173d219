"""Reads training shards from end to end, and names what is not as it was written.

    python -m trainer.verify --data RUN/tfrecords

Shards are compared with the SHA-256 of their manifest; of those that differ every
record is read, and the damaged ones are named, a line each. Exit code 0 where all is as
it was written, 1 where something is not.
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
