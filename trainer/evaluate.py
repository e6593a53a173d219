"""Measures a checkpoint, and prints one JSON object on standard output.

    python -m trainer.evaluate --checkpoint WORKDIR --task NAME --data [SET=]PATH \\
        [--set a=value]...

The tasks are those of the papers, on frozen encoders; `docs/evaluation.md` says what
each needs and how it is scored. Whatever uses one vector of an image is reported for
CLS 1, for CLS 2 and for their mean. Images are squeezed into a square whole, since
cutting would take away what captions speak of; zero-shot segmentation keeps their form.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence

from recipes import command_line

command_line.begin(__name__)

import jax
from jax.sharding import Mesh

from pipeline.records import VERSION
from trainer import config_files
from trainer.command_line import add_checkpoint_flags
from trainer.data.text_tokenizer import Tokenizer
from trainer.distributed import processes
from trainer.distributed.sharding import make_mesh, whole
from trainer.evals import geometry_tasks, image_tasks, segmentation_tasks
from trainer.evals.frozen_encoder import Encoder
from trainer.evals.sets import public_sets, readers, splits
from trainer.evals.sets.layouts import Wanted
from trainer.evals.sets.samples import SampleError
from trainer.evals.task_inputs import Evaluation, Task
from trainer.evaluation_config import EvaluationConfig
from trainer.models import two_tower
from trainer.pretrained import trained_model

TASKS: Mapping[str, Task] = {
    "zero_shot_classification": image_tasks.zero_shot,
    "retrieval": image_tasks.image_text_retrieval,
    "knn_classification": image_tasks.knn_classification,
    "linear_classification": image_tasks.linear,
    "fine_grained_retrieval": image_tasks.fine_grained_retrieval,
    "linear_segmentation": segmentation_tasks.linear_segmentation,
    "dpt_segmentation": segmentation_tasks.dpt_segmentation,
    "zero_shot_segmentation": segmentation_tasks.zero_shot_segmentation,
    "linear_depth": geometry_tasks.linear_depth,
    "dpt_depth": geometry_tasks.dpt_depth,
    "normals": geometry_tasks.dpt_normals,
}
PROBES = (
    *("knn_classification", "linear_classification"),
    *("linear_segmentation", "dpt_segmentation"),
    *("linear_depth", "dpt_depth", "normals"),
)
TEXT_TASKS = ("zero_shot_classification", "retrieval", "zero_shot_segmentation")


def run(
    task: str,
    data: str,
    encoder: Encoder,
    params: dict,
    settings: EvaluationConfig,
    *,
    is_shown: bool = False,
) -> dict:
    """One task on one evaluation set: nested numbers.

    Shares are in [0, 1], errors in meters or degrees. Raises SampleError when no sample
    has what the task needs.
    """
    name, source = find_data(data, settings)
    found = TASKS[task](Evaluation(encoder, params, source, settings, is_shown))
    if processes.is_first():
        for line in source.account.lines():
            print(f"warning: {task}: {source.place}: {line}", file=sys.stderr)
    found = {"split": source.account.split, "data": source.summary(), **found}
    if name:
        n_images = found.get("n_images", _n_images(found))
        found = {"data_set": public_sets.compared(name, n_images), **found}
    return found


def run_all(
    evaluations: Mapping[str, str],
    encoder: Encoder,
    params: dict,
    settings: EvaluationConfig,
) -> dict:
    """All of task -> data, as flat `task/.../number` for the training log."""
    results = {
        task: run(task, data, encoder, params, settings)
        for task, data in evaluations.items()
    }
    return dict(_flat(results))


def check_tasks(
    evaluations: Mapping[str, str], settings: EvaluationConfig, patch_px: int
) -> None:
    """Raises ValueError on an unknown task, data that is not there, or a wrong size."""
    if settings.size_px % patch_px:
        raise ValueError(
            f"size_px={settings.size_px}: expected a multiple of {patch_px}, the"
            " side of a patch"
        )
    for task, data in evaluations.items():
        if task not in TASKS:
            raise ValueError(f"evaluation {task}: expected one of {', '.join(TASKS)}")
        name, source = find_data(data, settings)
        public_sets.check_task(name, task)
        if task in PROBES:
            source.check_split()


def find_data(data: str, settings: EvaluationConfig) -> tuple[str, readers.Source]:
    """The name of the recipe, or "", and the evaluation set."""
    name, place = public_sets.split_name(data)
    told = settings.scored_split and splits.told(settings.scored_split)
    preferred = splits.told(public_sets.RECIPES[name].split) if name else ""
    source = readers.find(place, settings.classes, Wanted(told, preferred))
    if name and not source.classes:
        source = dataclasses.replace(source, classes=public_sets.RECIPES[name].classes)
    return name, source


def _n_images(found: Mapping) -> int:
    """Of tasks with several parts, such as granularities: the largest of them."""
    parts = [part for part in found.values() if isinstance(part, Mapping)]
    found_in = (part.get("n_images") or _n_images(part) for part in parts)
    return max(found_in, default=0)


def _flat(results: Mapping, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers, without those of single classes and of what was left out."""
    for name, value in results.items():
        if isinstance(value, Mapping) and name not in ("iou_by_class", "data"):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value


def load(
    found: trained_model.Trained, mesh: Mesh, *, has_text: bool = True
) -> tuple[Encoder, dict]:
    """Encoders of a checkpoint and their parameters, on all devices of a mesh.

    Without `has_text` the text encoder is not read. Raises ValueError when it is wanted
    and the checkpoint has none.
    """
    config = found.config
    names = ("vision", "text") if has_text else ("vision",)
    if has_text and "text" not in found.modules():
        raise ValueError(
            f"{found.folder}, step {found.step}: no text encoder, expected one for"
            f" tasks with texts: {', '.join(TEXT_TASKS)}"
        )
    shapes = two_tower.abstract_params(config.model)
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole(mesh)),
        {name: shapes[name] for name in names},
    )
    tokenizer = Tokenizer(config.data.tokenizer, config.model.text.max_tokens)
    return Encoder(config, tokenizer, mesh), found.params(placed)


def main(arguments: Sequence[str] | None = None) -> None:
    flags = _parser().parse_args(arguments)
    with processes.libraries_aside() if flags.distributed else contextlib.nullcontext():
        numbers = _measured(flags)
    if processes.is_first():
        json.dump(numbers, sys.stdout, indent=2)
        print()


def _measured(flags: argparse.Namespace) -> dict:
    """What is printed. Ends the program when something is wrong."""
    with command_line.exits(command_line.WRONG_USAGE, ValueError):
        if flags.distributed:
            processes.join()
        found = trained_model.find(flags.checkpoint, flags.step)
        settings = config_files.changed(found.config.run.evaluation, flags.overrides)
        patch_px = found.config.model.vision.patch_size_px
        check_tasks({flags.task: flags.data}, settings, patch_px)
        has_text = flags.task in TEXT_TASKS
        encoder, params = load(found, make_mesh(), has_text=has_text)
    is_first = processes.is_first()
    with (
        command_line.exits(command_line.FAILED, ValueError),
        command_line.exits(command_line.WRONG_USAGE, SampleError),
    ):
        results = run(
            flags.task, flags.data, encoder, params, settings, is_shown=is_first
        )
    found_by = {"task": flags.task, "step": found.step, "version": VERSION}
    return found_by | results


def _parser() -> command_line.Parser:
    parser = command_line.Parser(
        prog="python -m trainer.evaluate",
        description="Measures a checkpoint; prints one JSON object.",
    )
    add_checkpoint_flags(parser)
    parser.add_argument("--task", required=True, choices=list(TASKS))
    parser.add_argument(
        "--data",
        required=True,
        metavar="[SET=]PATH",
        help="folder, file or glob of tars, Parquet files or images, or tfds:NAME; SET"
        f" says which public data set it is: {', '.join(public_sets.RECIPES)}",
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
    parser.add_argument("--distributed", action="store_true", help=processes.HELP)
    return parser


if __name__ == "__main__":
    main()
