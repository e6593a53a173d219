"""What a run takes from trained models: its first parameters, or its teacher.

`init_from` is read once, before the first step of a new run. The frozen teacher of
`teacher_from` becomes part of the state, and is read again when the run resumes: no
checkpoint holds it.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import optax
from jax.sharding import Mesh

from trainer.config import Ema, InitParts, ModelConfig, TrainConfig
from trainer.config_files import differences
from trainer.distributed import sharding
from trainer.models import two_tower
from trainer.pretrained import vocabulary
from trainer.pretrained.trained_model import TrainedModel, find_trained_model
from trainer.step import teacher
from trainer.step.state import State, init_params, with_params

# Parameters that only self-supervision has.
_OF_PATCHES = {"head", "mask_token"}
# Fields of ModelConfig that must be equal; without an entry, all of them.
_PARTS = {
    InitParts.TOWERS: ("vision", "text", "contrastive_loss"),
    InitParts.VISION: ("vision",),
    InitParts.TEXT: ("text",),
}


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """The models that `init_from` and `teacher_from` name; None if they name none."""

    start: TrainedModel | None
    teacher: TrainedModel | None

    @property
    def teacher_model(self) -> ModelConfig | None:
        """The model of the frozen teacher, if there is one."""
        return None if self.teacher is None else self.teacher.config.model

    @property
    def teacher_fingerprint(self) -> Mapping[str, Any]:
        """Step and digest of the frozen teacher; {} if there is none."""
        if self.teacher is None:
            return {}
        return {"step": self.teacher.step, "digest": self.teacher.digest()}


def find_starting_point(
    config: TrainConfig, *, is_new: bool = True, teacher_step: int | None = None
) -> StartingPoint:
    """Finds the models of a run. Raises ValueError if one is missing or does not fit.

    A run that is not new resumes from its own checkpoint, whatever it started from. The
    frozen teacher is that of `teacher_step`, or the latest.
    """
    start, frozen = None, None
    if config.init_from and is_new:
        start = _find("init_from", config.init_from)
        _check_start(config, start)
    if config.self_supervision.ema is Ema.FROZEN:
        frozen = _find("teacher_from", config.teacher_from, teacher_step)
        _check_teacher(config, frozen)
    return StartingPoint(start, frozen)


def _find(setting: str, place: str, step: int | None = None) -> TrainedModel:
    try:
        return find_trained_model(pathlib.Path(place), step)
    except ValueError as error:
        raise ValueError(f"{setting}={place}: {error}") from error


def initial_state(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    origins: StartingPoint,
) -> State:
    """Returns the state before the first step, on the devices of a mesh.

    Every array is made or read in its place, one after the other.
    """
    trained = {}
    if origins.start is not None:
        trained = _trained_params(config, origins.start, mesh)
    params = init_params(config, mesh, left_out=trained) | trained
    state = with_params(config, optimizer, params, mesh)
    if origins.teacher is not None:
        kept, centers = origins.teacher.teacher(mesh)
        return {**state, "teacher": kept, "centers": centers}
    if origins.start is not None and config.init_parts is InitParts.ALL:
        return state | _trained_teacher(config, origins.start, mesh)
    return state


def _trained_params(config: TrainConfig, start: TrainedModel, mesh: Mesh) -> dict:
    """The parameters that come from a trained model, positions resized to the grid."""
    has_head = config.self_supervision.is_on
    shapes = two_tower.abstract_params(start.config.model, has_head=has_head)
    if config.init_parts is not InitParts.ALL:
        is_both = config.init_parts is InitParts.TOWERS
        taken = shapes.keys() - _OF_PATCHES if is_both else {str(config.init_parts)}
        shapes = {name: shapes[name] for name in taken}
    params = start.params(sharding.with_places(mesh, shapes))
    return two_tower.resize_positions(params, config.model.vision.position_grid)


def _trained_teacher(config: TrainConfig, start: TrainedModel, mesh: Mesh) -> State:
    """What the state takes from the teacher of a trained model."""
    names = teacher.averaged_modules(config.self_supervision)
    if not names:
        return {}
    taught, centers = start.teacher(mesh, names)
    taught = two_tower.resize_positions(taught, config.model.vision.position_grid)
    return {"teacher": taught, "centers": centers}


def _check_start(config: TrainConfig, start: TrainedModel) -> None:
    name = f"init_from={config.init_from}"
    ours, theirs = _without_grid(config.model), _without_grid(start.config.model)
    if parts := _PARTS.get(config.init_parts):
        ours, theirs = ({part: x[part] for part in parts} for x in (ours, theirs))
    elif config.self_supervision.is_on and not start.config.self_supervision.is_on:
        raise ValueError(
            f"{name}: trained without self-supervision, expected a model with a head,"
            " or init_parts=towers, or text"
        )
    for field, there, here in differences(theirs, ours):
        raise ValueError(f"{name}: model.{field}={there} there, expected {here}")
    if config.init_parts is not InitParts.VISION:
        vocabulary.check_same_vocabulary(
            pathlib.Path(config.data.tokenizer), start.folder, name
        )


def _without_grid(model: ModelConfig) -> Mapping[str, Any]:
    """Nested dictionaries without what may differ: the grid, and how it is trained."""
    values = dataclasses.asdict(model)
    for name in ("position_grid", "cls_init_stddev", "drop_path"):
        del values["vision"][name]
    del values["text"]["drop_path"]
    return values


def _check_teacher(config: TrainConfig, frozen: TrainedModel) -> None:
    name = f"teacher_from={config.teacher_from}"
    ours, theirs = config.self_supervision, frozen.config.self_supervision
    if not theirs.is_on:
        raise ValueError(
            f"{name}: trained without self-supervision, expected a model with a head"
        )
    for term in ("distillation_weight", "patch_weight"):
        if getattr(ours, term) > 0 and not getattr(theirs, term):
            raise ValueError(
                f"{name}: self_supervision.{term}=0 there, expected more, or 0 here:"
                " its head has not learned what it is to teach"
            )
    here, there = config.model, frozen.config.model
    if here.head.n_prototypes != there.head.n_prototypes:
        raise ValueError(
            f"model.head.n_prototypes={here.head.n_prototypes}: expected"
            f" {there.head.n_prototypes}, those of the teacher in {config.teacher_from}"
        )
    if here.vision.patch_size_px != there.vision.patch_size_px:
        raise ValueError(
            f"{name}: its patches are of {there.vision.patch_size_px} px, expected"
            f" {here.vision.patch_size_px} as model.vision.patch_size_px, since"
            " patches are compared one by one"
        )
