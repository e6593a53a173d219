"""Command line: curates image-text pairs into captioned training shards.

    python -m pipeline.run curate --config FILE.py --output RUN --input GLOB
    python -m pipeline.run status --output RUN

Each command has its own --help. Exit codes: 0 done, 1 the run failed, 2 the command or
the configuration is wrong, or another run is at work in the run folder. `status`,
`show` and `find` may look on meanwhile.
"""

import atexit
import gc
import logging
import os
from collections.abc import Sequence

from recipes import command_line, interrupts

command_line.begin(__name__)

if interrupts.is_program(__name__):
    # Beam and JAX make millions of objects that stay: looking for garbage among them at
    # every 700 new ones, and once more at the end, takes two seconds of a command.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)

# XLA and Beam's workers say a lot that is of no use to a user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
logging.getLogger().addFilter(lambda said: "apitools not found" not in str(said.msg))

from pipeline.commands.arguments import LOOKING, parse
from pipeline.commands.configuration import WRONG, configured
from pipeline.engine.run_folder import RunFolder


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; exits with 2 and one line if it is wrong.

    A file system that is full, read-only, out of reach or silent is one line and 1.
    """
    command, others = parse(arguments, __doc__)
    try:
        if command.command in LOOKING:
            from pipeline.commands.look import look  # each does without the other

            with command_line.exits(command_line.WRONG_USAGE, *WRONG):
                look(command, others)
        else:
            from pipeline.commands.running import run  # with Beam: two seconds

            run(command, others)
    except OSError as error:
        command_line.end(command_line.FAILED, error)


def open_run(arguments: Sequence[str]) -> RunFolder:
    """Opens the run folder that a command line means, to look into it."""
    command, _ = parse(arguments, __doc__)
    return RunFolder.open(command.output, configured(command))


if __name__ == "__main__":
    main()
