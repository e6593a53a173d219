"""What can be wrong before a run: the checks of all packages, in their order.

In: a command with its flags. Out: an open run, or a ValueError of one line before any
work is done. Each check runs once per command, and the cheapest comes first: a wrong
word costs no listing, and a missing folder costs no model.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.captioning import checks as captioning
from pipeline.commands.arguments import STAGES
from pipeline.commands.configuration import configured, granularities_of
from pipeline.config import prompts
from pipeline.config.captions import Granularity
from pipeline.engine import checks as engine
from pipeline.engine import (
    listed_lots,
    removals,
    run_folder,
    scored_shards,
    stage_runner,
)
from pipeline.engine.run_folder import RunFolder
from pipeline.report import checks as report
from pipeline.scoring import checks as scoring
from pipeline.selection import checks as selection
from pipeline.selection.duplicates import audit
from pipeline.sources import checks as sources
from pipeline.storage import places


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run that is open, and what a command is about to do with it."""

    command: argparse.Namespace
    run: RunFolder
    stages: tuple[str, ...]  # that may have work to do
    granularities: Sequence[Granularity]  # to caption

    @classmethod
    def of(cls, command: argparse.Namespace, run: RunFolder) -> "Plan":
        one = {
            "curate": STAGES,
            "forecast": ("score", "select"),
            "retry-failed": ("caption", "export"),
        }
        own = (command.command,) if command.command in STAGES else ()
        is_removal = command.command == "remove"  # of names with fingerprints
        names = () if is_removal else command.granularity
        granularities = granularities_of(run.config, names)
        return cls(command, run, one.get(command.command, own), granularities)


def open_run(command: argparse.Namespace, options: PipelineOptions) -> RunFolder:
    """Opens the run of a command, checked as far as no table is read.

    Raises:
      ValueError: on flags, a recipe, paths or a run folder that cannot be used.
    """
    config = configured(command)  # checks every setting by itself
    inputs = stage_runner.named_inputs(config)
    stage_runner.check_paths(options, [("--output", command.output), *inputs])
    places.check(inputs)
    run_folder.check_format("--output", command.output)
    return RunFolder.open(command.output, config)  # finds shards and checkpoints


def _check_prompts(plan: Plan) -> None:
    prompts.levels(plan.run.config.granularities)


def _check_folder(plan: Plan) -> None:
    engine.check(plan.run)


def _check_listing(plan: Plan) -> None:
    run = plan.run
    if plan.command.command != "report":
        listed_lots.expect_all(run.config, run.plan, run.root, run.role_to_lots)


def _check_report(plan: Plan) -> None:
    report.check(plan.command.against, plan.command.pictures)


def _check_audit(plan: Plan) -> None:
    is_asked, lookalikes = plan.command.audit, plan.command.lookalikes
    if lookalikes and not is_asked:
        raise ValueError(f"--lookalikes {lookalikes}: expected --audit with it")
    if is_asked:
        audit.check(plan.run)
        audit.check_lookalikes(lookalikes)


def _check_selection(plan: Plan) -> None:
    selection.check(plan.run)


def _check_sources(plan: Plan) -> None:
    unread = [s for u in scored_shards.unscored_lots(plan.run) for s in u.shards]
    sources.check(unread, plan.run.drop_list, plan.run.root)


def _check_encoder(plan: Plan) -> None:
    if "score" in plan.stages:
        scoring.check(plan.run)


def _check_removed(plan: Plan) -> None:
    if "score" in plan.stages:
        removals.Removals.read(plan.run.root).expect_table(plan.run.root)


def _check_captioners(plan: Plan) -> None:
    if "caption" in plan.stages:
        captioning.check(plan.run, plan.granularities)


# What each one finds wrong; all but the last three take milliseconds for a small run.
# The last one makes the table of a drop list, in the folder of a run that is right.
CHECKS: tuple[Callable[[Plan], None], ...] = (
    _check_prompts,  # a prompt names captions that no granularity writes
    _check_report,  # --against is no run, --pictures holds no pictures
    _check_listing,  # shards are gone that the same pattern found before
    _check_removed,  # the table of removed pairs is damaged
    _check_folder,  # the run folder holds the run of another recipe
    _check_selection,  # settings do not fit the sets, or pairs that are scored
    _check_audit,  # --audit has no evaluation sets, --lookalikes no pairs
    _check_encoder,  # the encoder is needed and cannot be read
    _check_captioners,  # a captioner is needed and cannot be read
    _check_sources,  # a Parquet file lacks a column, a drop list has a wrong line
)


def check(plan: Plan) -> None:
    """Runs all checks in their order.

    Raises:
      ValueError: with one line about the first thing that is wrong.
    """
    for check_one in CHECKS:
        check_one(plan)
