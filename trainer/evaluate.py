"""Measures a checkpoint, and prints one JSON object on standard output.

    python -m trainer.evaluate --checkpoint WORKDIR --task NAME --data [SET=]PATH \\
        [--set a=value]...

The tasks are the papers', on frozen encoders, or your own as MODULE:NAME;
`docs/evaluation.md` says what each needs and how it is scored. Tasks that use one
vector per image report CLS 1, CLS 2 and their mean. Whole images are squeezed into a
square, since a crop would cut away what captions describe; zero-shot segmentation keeps
their aspect.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence

from recipes import command_line
from trainer.command_line import evaluate_parser

command_line.begin(__name__, evaluate_parser)

from pipeline.records import VERSION
from trainer import config_files
from trainer.distributed import processes
from trainer.distributed.sharding import make_mesh
from trainer.evals.run import check_tasks, load_encoder, run_task
from trainer.evals.sets.samples import SampleError
from trainer.evals.tasks import find_task
from trainer.pretrained.trained_model import find_trained_model


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; see the module."""
    flags = evaluate_parser().parse_args(arguments)
    with (
        processes.redirect_library_output()
        if flags.distributed
        else contextlib.nullcontext()
    ):
        numbers = _measure(flags)
    if processes.is_first():
        json.dump(numbers, sys.stdout, indent=2)
        print()


def _measure(flags: argparse.Namespace) -> dict:
    """Returns the numbers to print. Ends the program if something is wrong."""
    with command_line.exits(command_line.WRONG_USAGE, ValueError):
        if flags.distributed:
            processes.join()
        found = find_trained_model(flags.checkpoint, flags.step)
        settings = config_files.changed(found.config.run.evaluation, flags.overrides)
        found = found.with_weights(settings.weights)
        patch_px = found.config.model.vision.patch_size_px
        check_tasks({flags.task: flags.data}, settings, patch_px)
        has_text = find_task(flags.task).reads_text
        encoder, params = load_encoder(found, make_mesh(), has_text=has_text)
    is_first = processes.is_first()
    with (
        command_line.exits(command_line.FAILED, ValueError),
        command_line.exits(command_line.WRONG_USAGE, SampleError),
    ):
        results = run_task(
            flags.task, flags.data, encoder, params, settings, is_shown=is_first
        )
    found_by = {"task": flags.task, "step": found.step, "version": VERSION}
    return found_by | results


if __name__ == "__main__":
    main()
