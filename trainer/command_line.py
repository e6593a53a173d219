"""The flags of the trainer's commands.

They are read before JAX is imported, so that `--help` and a wrong flag take no seconds.
What flags name, such as tasks and formats, stands here as words; a test compares them
with the code.
"""

import argparse
import pathlib

from recipes.command_line import Parser

TASKS = (
    "zero_shot_classification",
    "retrieval",
    "knn_classification",
    "linear_classification",
    "fine_grained_retrieval",
    "linear_segmentation",
    "dpt_segmentation",
    "zero_shot_segmentation",
    "linear_depth",
    "dpt_depth",
    "normals",
)
PUBLIC_SETS = (
    "imagenet",
    "flickr30k",
    "coco",
    "docci",
    "uned_cars",
    "uned_sop",
    "uned_inshop",
    "uned_inat",
    "uned_met",
    "uned_gldv2",
    "uned_food2k",
    "uned_rp2k",
    "voc",
    "ade20k",
    "nyuv2",
    "navi",
    "ade150",
    "context59",
    "context60",
    "voc21",
)
FORMATS = ("hf", "scenic", "pytorch", "onnx", "stablehlo")
GELUS = ("tanh", "exact")
WEIGHTS = ("student", "teacher")
ADDRESS = "JAX_COORDINATOR_ADDRESS"
COUNT = "JAX_NUM_PROCESSES"
NUMBER = "JAX_PROCESS_ID"

_DISTRIBUTED = (
    "one process of several: each runs this command, with a workdir that all of them"
    " see. They find each other by themselves on TPU pods and under Slurm; elsewhere"
    f" {ADDRESS} (HOST:PORT of the first process, the same for all), {COUNT} and"
    f" {NUMBER} (0, 1 and so on) in the environment say how"
)


def local_path(value: str) -> pathlib.Path:
    """Returns a path. Refuses addresses, of which it would make a local folder."""
    if "://" in value:
        raise argparse.ArgumentTypeError(
            f"{value}: expected a path on disks, which all processes share; object"
            " stores hold training shards alone"
        )
    return pathlib.Path(value)


def train_parser() -> Parser:
    """Returns the parser of `python -m trainer.train`."""
    parser = Parser(
        prog="python -m trainer.train",
        script="tips-train",
        description="Trains an image encoder and a text encoder on training shards."
        " Run again, it resumes where it stopped.",
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py",
        help="a Python file with get_config(), such as trainer/configs/demo.py",
    )
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="[NAME=]RUN/tfrecords",
        help="folder with manifest.json, shards and indexes; may be repeated, for a"
        " mixture with the weights of data.mixture",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        type=local_path,
        metavar="DIR",
        help="where checkpoints and metrics go; made if it does not exist",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="a.b=value",
        help="changes a field of the configuration; may be repeated",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help=_DISTRIBUTED,
    )
    return parser


def evaluate_parser() -> Parser:
    """Returns the parser of `python -m trainer.evaluate`."""
    parser = Parser(
        prog="python -m trainer.evaluate",
        description="Measures a checkpoint; prints one JSON object.",
    )
    _add_checkpoint_flags(parser)
    parser.add_argument(
        "--task",
        required=True,
        metavar="NAME",
        help=f"one of {', '.join(TASKS)}; or MODULE:NAME, a task of your own",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="[SET=]PATH",
        help="folder, file or glob of tars, Parquet files or images, or tfds:NAME; SET"
        f" says which public data set it is: {', '.join(PUBLIC_SETS)}",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="a=value",
        help="changes a field of trainer.evaluation_config.EvaluationConfig, which is"
        " run.evaluation of the checkpoint's configuration; may be repeated",
    )
    parser.add_argument("--distributed", action="store_true", help=_DISTRIBUTED)
    return parser


def export_parser() -> Parser:
    """Returns the parser of `python -m trainer.export`."""
    parser = Parser(
        prog="python -m trainer.export",
        description="Writes a trained model for other programs.",
    )
    _add_checkpoint_flags(parser)
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument(
        "--output",
        required=True,
        type=local_path,
        metavar="DIR",
        help="the folder that is made",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default=WEIGHTS[0],
        help="whose image encoder: the student's, or the teacher's average of it, with"
        " self_supervision.ema=full (default: %(default)s)",
    )
    parser.add_argument(
        "--image-size-px",
        type=int,
        metavar="N",
        help="side of the images that the export is for (default: of training)",
    )
    parser.add_argument(
        "--gelu",
        choices=GELUS,
        default="tanh",
        help="with which GELU transformers computes: tanh, as in training, or exact, as"
        " released folders say (default: %(default)s; hf only)",
    )
    return parser


def pictures_parser() -> Parser:
    """Returns the parser of `python -m trainer.pictures`."""
    parser = Parser(
        prog="python -m trainer.pictures",
        description="Draws what a checkpoint sees in photos.",
    )
    _add_checkpoint_flags(parser)
    parser.add_argument(
        "--data",
        required=True,
        metavar="[SET=]PATH",
        help="as for trainer.evaluate: folder, file or glob of tars, Parquet or images",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=local_path,
        metavar="FOLDER",
        help="the folder that is made; RUN/pictures is shown in the report of a run",
    )
    parser.add_argument(
        "--class-names",
        nargs="+",
        metavar="NAME",
        help="classes to find by their names (default: those of the data, if any)",
    )
    parser.add_argument(
        "--n-images",
        type=int,
        default=8,
        metavar="N",
        help="how many photos to draw (default: %(default)s)",
    )
    parser.add_argument(
        "--n-searched",
        type=int,
        default=1000,
        metavar="N",
        help="among how many images neighbors are found (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="a=value",
        help="changes a field of trainer.evaluation_config.EvaluationConfig, such as"
        " size_px or classes; may be repeated",
    )
    return parser


def _add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--checkpoint` and `--step`, which `trained_model.find` takes."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=local_path,
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
