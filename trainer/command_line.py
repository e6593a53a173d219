"""Flags that several commands of the trainer share."""

import argparse
import pathlib


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--checkpoint` and `--step`, which `trained_model.find` takes."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=pathlib.Path,
        metavar="DIR",
        help="a workdir of trainer.train, WORKDIR/checkpoints/STEP, or an export",
    )
    parser.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="which checkpoint of a workdir; 0 is the untrained model (default: the"
        " latest)",
    )
