"""The commands that look: `status`, `show` and `find`.

They write nothing that another run could, and do without Beam, JAX and models, unless
a file system of Beam or a picture to compare with is asked for.
"""

import argparse
from collections.abc import Iterable, Sequence

from pipeline.commands.configuration import check_output, has_flags, open_run
from pipeline.commands.recorded_changes import describe_changes
from pipeline.commands.status import print_status
from pipeline.engine import checks, listed_lots, scored_shards
from pipeline.engine.run_folder import RunFolder, check_format
from pipeline.selection import ledger
from pipeline.storage import files, places, remembered_listings
from recipes import command_line

# The shards of more lots take longer to list than all else that is looked at: then
# they are those of the last command.
_MAX_LISTED_LOTS = 1_000


def look(command: argparse.Namespace, beam_flags: Sequence[str]) -> None:
    """Prints what a command sees.

    Raises:
      ValueError: on flags, a recipe or a run folder that cannot be used.
    """
    _use_file_system(command, beam_flags)
    check_output(command.output)
    places.check([("--output", f"{command.output}/")])
    check_format("--output", command.output)
    with remembered_listings.kept():
        _look(command)


def _look(command: argparse.Namespace) -> None:
    is_large = listed_lots.count(command.output) > _MAX_LISTED_LOTS
    is_recorded = not command.config and not has_flags(command)
    run = open_run(command, is_listed=is_large and is_recorded)
    checks.check(run)
    if not (is_large and is_recorded):  # else there is nothing to compare with
        command_line.warn(scored_shards.describe_changes(run))
        lots = (run.config, run.plan, run.root, run.role_to_lots)
        command_line.warn(listed_lots.describe_gone(*lots))
    if command.command == "find" and ledger.read(run) is None:
        raise ValueError("decisions are missing: expected `select` to be done before")
    for line in _lines(run, command):
        print(line)


def _use_file_system(command: argparse.Namespace, beam_flags: Sequence[str]) -> None:
    """Passes the flags of stores on; without any, there is no need of Beam."""
    if not beam_flags:
        return
    places = (command.output, *command.input, *command.eval, *command.seeds)
    if not any(map(files.is_remote, places)):
        raise ValueError(
            f"{beam_flags[0]}: expected a flag of {command.command} --help"
        )
    # Two seconds that most looks do without.
    from pipeline.commands.beam_flags import beam_options

    files.use_options(beam_options(beam_flags))


def _lines(run: RunFolder, command: argparse.Namespace) -> Iterable[str]:
    if command.command == "status":
        print_status(run)
        return describe_changes(run, command)
    if command.command == "show":
        from pipeline.report import show_pair  # `status` does without pictures

        return show_pair.show(run, command.sample_id, command.image)
    from pipeline.report import find_pairs

    scores = tuple(map(find_pairs.ScoreRange.parse, command.score))
    texts = (command.text, command.reason, command.seed)
    question = find_pairs.Question(*texts, scores)
    return find_pairs.lines(run, question, command.like, command.limit)
