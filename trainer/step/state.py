"""The training state: a plain nested dictionary of arrays.

    {"params": {...}, "teacher": {...}, "centers": {...}, "opt_state": (...), "step": n}

`teacher` holds the moving averages of the student's modules that the teacher keeps,
`centers` those of its logits; both are empty without self-supervision. `terms` is there
if an added term keeps something. `step` counts the updates done.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, Sharding

from trainer.config import TrainConfig
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
    ssl = config.self_supervision
    params = two_tower.init_params(config.model, config.rng_seed, has_head=ssl.is_on)
    state = {
        "params": params,
        "teacher": teacher.init_teacher(params, ssl),
        **initial_kept(config, params),
        "opt_state": jax.jit(optimizer.init)(params),
        "step": jnp.int32(0),
    }
    return state if mesh is None else place_on_mesh(state, mesh)


def place_on_mesh(state: State, mesh: Mesh) -> State:
    """Places a state on the devices of a mesh; each process brings its own part."""
    return jax.tree.map(_place_array, state, sharding.state_sharding(mesh, state))


def _place_array(x: Array, place: Sharding) -> Array:
    """Not with `device_put`: over processes it compares all values, array by array."""
    values = np.asarray(x)
    return jax.make_array_from_callback(x.shape, place, lambda part: values[part])


def abstract_state(state: State) -> State:
    """Returns shapes, types and shardings, which a checkpoint is read into."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
