"""The figures of an arm: evaluations of the trainer on its frozen encoder."""

import pathlib
from typing import Any

import jax
import numpy as np

from tools.ablation.scenes import HELD_OUT
from trainer.config import TrainConfig
from trainer.distributed.sharding import make_mesh
from trainer.evals.run import load_encoder, run_task
from trainer.pretrained.starting_point import find_starting_point, initial_state
from trainer.pretrained.trained_model import TrainedModel
from trainer.step.optimizer import make_optimizer

_TOKEN = "cls_2"  # the token that is trained with captions; queries are captions
# Of the queries: a single noun would fit many images.
_GRANULARITIES = ("medium", "detailed")


def measure(found: TrainedModel, web: pathlib.Path) -> dict[str, float]:
    """Evaluates a trained model on the web of the ablation.

    Returns shares in [0, 1], and `state_bytes`.
    """
    encoder, params = load_encoder(found, make_mesh())
    settings = found.config.run.evaluation

    def run(task: str, data: str) -> dict[str, Any]:
        return run_task(task, str(web / data), encoder, params, settings)

    by_names = run("zero_shot_segmentation", "names")["whole"]
    by_colors = run("zero_shot_segmentation", "colors")["whole"]
    by_probe = run("linear_segmentation", "shapes")
    retrieval = run("retrieval", "names")
    neighbors = run("knn_classification", "shapes")
    return {
        **_score_names(by_names),
        **_with_baselines("zero_shot_color", by_colors),
        "linear_miou": by_probe["mean_iou"],
        "linear_most_frequent_miou": by_probe["baselines"]["most_frequent_mean_iou"],
        **{way: _recall(retrieval, way) for way in ("image_to_text", "text_to_image")},
        "knn_accuracy": neighbors[_TOKEN]["accuracy_k20"],
        "state_bytes": state_bytes(found.config),
    }


def state_bytes(config: TrainConfig) -> int:
    """Bytes of the state that changes from step to step, and of a frozen teacher."""
    optimizer = make_optimizer(config.optimizer, config.n_steps)
    state = initial_state(config, optimizer, make_mesh(), find_starting_point(config))
    return sum(x.nbytes for x in jax.tree.leaves(state))


def _score_names(found: dict[str, Any]) -> dict[str, float]:
    by_class = found["iou_by_class"]
    held_out = {" ".join(pair) for pair in HELD_OUT}
    is_held_out = {name: name in held_out for name in by_class}
    return {
        **_with_baselines("zero_shot", found),
        "zero_shot_miou_held_out": _mean_where(by_class, is_held_out, True),
        "zero_shot_miou_seen": _mean_where(by_class, is_held_out, False),
    }


def _with_baselines(name: str, found: dict[str, Any]) -> dict[str, float]:
    return {
        f"{name}_miou": found["mean_iou"],
        f"{name}_random_miou": found["baselines"]["random_mean_iou"],
        f"{name}_most_frequent_miou": found["baselines"]["most_frequent_mean_iou"],
    }


def _mean_where(
    by_class: dict[str, float], is_held_out: dict[str, bool], wanted: bool
) -> float:
    return float(np.mean([v for k, v in by_class.items() if is_held_out[k] == wanted]))


def _recall(retrieval: dict[str, Any], way: str) -> float:
    """Recall at 1, averaged over the granularities."""
    found = [retrieval[name][_TOKEN][way]["recall@1"] for name in _GRANULARITIES]
    return float(np.mean(found))
