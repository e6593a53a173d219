"""The training state: a plain nested dictionary of arrays.

    {"params": {...}, "teacher": {...}, "centers": {...}, "opt_state": (...), "step": n}

`teacher` holds the moving averages of the student's modules that the teacher keeps,
`centers` those of its logits; both are empty without self-supervision. `terms` is there
if an added term keeps something. `step` counts the updates done.
"""

import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from trainer.config import ModelConfig, TrainConfig
from trainer.distributed import sharding
from trainer.models import two_tower
from trainer.step import teacher
from trainer.step.terms.kept import initial_kept

State = dict[str, Any]


def init_state(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
) -> State:
    """Returns the state before the first step: a function of `config` alone."""
    return with_params(config, optimizer, init_params(config, mesh), mesh)


def init_params(
    config: TrainConfig, mesh: Mesh | None = None, left_out: Collection[str] = ()
) -> dict:
    """Returns the parameters before the first step, without some modules.

    On a mesh each is drawn, and placed, before the next: neither the host nor a device
    holds more than its part and one array.
    """
    has_head = config.self_supervision.is_on
    draws, shapes = (
        {name: part for name, part in tree.items() if name not in left_out}
        for tree in (
            two_tower.param_draws(config.model, config.rng_seed, has_head=has_head),
            two_tower.abstract_params(config.model, has_head=has_head),
        )
    )
    if mesh is None:
        return jax.tree.map(lambda draw: jnp.asarray(draw()), draws)
    return jax.tree.map(
        lambda draw, place: sharding.place_array(draw(), place),
        draws,
        sharding.state_sharding(mesh, shapes),
    )


def with_params(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    params: dict,
    mesh: Mesh | None = None,
) -> State:
    """Returns the state before the first step with these parameters."""
    shapes = jax.eval_shape(functools.partial(_beside, config, optimizer), params)
    places = None if mesh is None else sharding.state_sharding(mesh, shapes)
    make = jax.jit(functools.partial(_beside, config, optimizer), out_shardings=places)
    return {"params": params, **make(params)}


def abstract_state(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    teacher_model: ModelConfig | None = None,
) -> State:
    """Returns shapes, types and shardings of the state, and makes nothing.

    `teacher_model` is the model of a frozen teacher.
    """
    params = two_tower.abstract_params(
        config.model, has_head=config.self_supervision.is_on
    )
    rest = jax.eval_shape(functools.partial(_beside, config, optimizer), params)
    shapes = {"params": params, **rest}
    if teacher_model is not None:
        shapes |= _abstract_teacher(config, teacher_model)
    return shapes if mesh is None else sharding.with_places(mesh, shapes)


def _beside(
    config: TrainConfig, optimizer: optax.GradientTransformation, params: dict
) -> State:
    """All of the first state but the parameters."""
    return {
        "teacher": teacher.init_teacher(params, config.self_supervision),
        **initial_kept(config, params),
        "opt_state": optimizer.init(params),
        "step": jnp.int32(0),
    }


def _abstract_teacher(config: TrainConfig, model: ModelConfig) -> State:
    """The parts of the state that come from a frozen teacher."""
    modules = two_tower.abstract_params(model, has_head=True)
    ssl = config.self_supervision
    return {
        "teacher": {name: modules[name] for name in teacher.MODULES},
        "centers": jax.eval_shape(lambda: teacher.init_centers(model.head, ssl)),
    }


def place_on_mesh(state: State, mesh: Mesh) -> State:
    """Places a state, or a part of it, on the devices of a mesh."""
    return jax.tree.map(
        lambda x, place: sharding.place_array(np.asarray(x), place),
        state,
        sharding.state_sharding(mesh, state),
    )
