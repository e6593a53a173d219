"""The train step: one jitted function from state and batch to state and metrics.

`loss_terms` is the place where further forward passes (local crops, masked global
crop, teacher) and their terms join. Chance, where a term needs it, comes from the seed
folded with `state["step"]`; nothing else is random here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from trainer import losses
from trainer.input import Batch
from trainer.models.two_tower import TwoTower
from trainer.state import State

Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[[State, Batch], tuple[State, Metrics]]


def make_train_step(
    graph: nnx.GraphDef, optimiser: optax.GradientTransformation
) -> TrainStep:
    """The step donates its state: use the one that it returns."""

    def loss(params: dict, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        model = nnx.merge(graph, params)
        terms = loss_terms(model, batch)
        temperatures = {
            f"temperature_{kind}": value for kind, value in model.temperatures().items()
        }
        chance = losses.chance_levels(len(batch["image"]))
        return losses.total(terms), {**terms, **chance, **temperatures}

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        params = state["params"]
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(
            params, batch
        )
        updates, opt_state = optimiser.update(gradients, state["opt_state"], params)
        state = {
            "params": optax.apply_updates(params, updates),
            "opt_state": opt_state,
            "step": state["step"] + 1,
        }
        norm = optax.tree.norm(gradients)
        return state, {"loss": value, **metrics, "gradient_norm": norm}

    return jax.jit(train_step, donate_argnums=0)


def loss_terms(model: TwoTower, batch: Batch) -> Metrics:
    """Every term of the loss. One pass of the text encoder serves both captions."""
    vision = model.encode_image(batch["image"])
    ids = jnp.concatenate([batch["alt_text"], batch["synthetic_caption"]])
    alt_text, synthetic_caption = jnp.split(model.encode_text(ids), 2)
    texts = {"alt_text": alt_text, "synthetic_caption": synthetic_caption}
    return losses.contrastive_terms(vision.cls, texts, model.temperatures())
