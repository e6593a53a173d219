"""Evaluations of one encoder: what they need is checked, then they run on their data.

In: a task by its name, the place of an evaluation set, an encoder and its parameters.
Out: nested numbers. The commands and the training loop evaluate through this module.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping

import jax
from jax.sharding import Mesh

from trainer.data.text_tokenizer import Tokenizer
from trainer.distributed import processes
from trainer.distributed.sharding import replicated
from trainer.evals.frozen_encoder import Encoder
from trainer.evals.sets import public_sets, readers
from trainer.evals.sets.layouts import ScoredSplit
from trainer.evals.sets.readers import find_source
from trainer.evals.task_inputs import Evaluation
from trainer.evals.tasks import find_task, text_tasks
from trainer.evaluation_config import EvaluationConfig
from trainer.models import two_tower
from trainer.pretrained.trained_model import TrainedModel
from trainer.split_names import parse_split


def run_task(
    task: str,
    data: str,
    encoder: Encoder,
    params: dict,
    settings: EvaluationConfig,
    *,
    is_shown: bool = False,
) -> dict:
    """Runs one task on one evaluation set, and returns nested numbers.

    Shares are in [0, 1], errors in meters or degrees. Raises SampleError if no sample
    has what the task needs.
    """
    name, source = find_data(data, settings)
    found = find_task(task).measure(
        Evaluation(encoder, params, source, settings, is_shown)
    )
    if processes.is_first():
        for line in source.account.lines():
            print(f"warning: {task}: {source.place}: {line}", file=sys.stderr)
    found = {"split": source.account.split, "data": source.summary(), **found}
    if name:
        n_images = found.get("n_images", _n_images(found))
        found = {"data_set": public_sets.compare_size(name, n_images), **found}
    return found


def run_tasks(
    evaluations: Mapping[str, str],
    encoder: Encoder,
    params: dict,
    settings: EvaluationConfig,
) -> dict:
    """Runs all of {task: data}; returns flat `task/.../number` for the training log."""
    results = {
        task: run_task(task, data, encoder, params, settings)
        for task, data in evaluations.items()
    }
    return dict(_flat(results))


def check_tasks(
    evaluations: Mapping[str, str], settings: EvaluationConfig, patch_px: int
) -> None:
    """Raises ValueError on an unknown task, missing data, or a wrong size."""
    if settings.size_px % patch_px:
        raise ValueError(
            f"size_px={settings.size_px}: expected a multiple of {patch_px}, the"
            " side of a patch"
        )
    for task, data in evaluations.items():
        needs = find_task(task)
        name, source = find_data(data, settings)
        public_sets.check_task(name, task)
        if needs.is_trained:
            source.check_split()


def find_data(data: str, settings: EvaluationConfig) -> tuple[str, readers.Source]:
    """Returns the evaluation set of `[SET=]PATH`, and SET, or "" without one."""
    name, place = public_sets.split_name(data)
    given = settings.scored_split and parse_split(settings.scored_split)
    preferred = parse_split(public_sets.RECIPES[name].split) if name else ""
    source = find_source(place, settings.classes, ScoredSplit(given, preferred))
    if name and not source.classes:
        source = dataclasses.replace(source, classes=public_sets.RECIPES[name].classes)
    return name, source


def _n_images(found: Mapping) -> int:
    """The largest number of images, of a task with parts such as granularities."""
    parts = [part for part in found.values() if isinstance(part, Mapping)]
    found_in = (part.get("n_images") or _n_images(part) for part in parts)
    return max(found_in, default=0)


def _flat(results: Mapping, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers, without those of single classes and the account of the data."""
    for name, value in results.items():
        if isinstance(value, Mapping) and name not in ("iou_by_class", "data"):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value


def load_encoder(
    found: TrainedModel, mesh: Mesh, *, has_text: bool = True
) -> tuple[Encoder, dict]:
    """Loads the encoders of a checkpoint to all devices of a mesh.

    Without `has_text` the text encoder is not read. Raises ValueError if it is needed
    and the checkpoint has none.
    """
    config = found.config
    names = ("vision", "text") if has_text else ("vision",)
    if has_text and "text" not in found.module_names():
        raise ValueError(
            f"{found.folder}, step {found.step}: no text encoder, expected one for"
            f" tasks with texts: {', '.join(text_tasks())}"
        )
    shapes = two_tower.abstract_params(config.model)
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
        {name: shapes[name] for name in names},
    )
    tokenizer = Tokenizer(config.data.tokenizer, config.model.text.max_tokens)
    return Encoder(config, tokenizer, mesh), found.params(placed)
