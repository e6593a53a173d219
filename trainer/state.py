"""What changes from step to step: a plain nested dictionary of arrays.

    {"params": {...}, "opt_state": (...), "step": n}

`step` counts the updates done. The EMA of the teacher and the centres of the
self-supervised losses join as further entries.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from trainer.config import TrainConfig
from trainer.models import two_tower

State = dict[str, Any]


def init_state(config: TrainConfig, optimiser: optax.GradientTransformation) -> State:
    """The state before the first step; a function of the configuration alone."""
    params = two_tower.init_params(config.model, config.rng_seed)
    return {
        "params": params,
        "opt_state": jax.jit(optimiser.init)(params),
        "step": jnp.int32(0),
    }


def abstract(state: State) -> State:
    """Shapes and types of a state, which a checkpoint is read into."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
