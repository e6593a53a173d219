"""The train step: one jitted function from state and batch to state and metrics.

It takes the gradient of `trainer.step.objective`, and computes the next parameters,
the next teacher and the next centers from it. Nothing here is random.
"""

from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh

from trainer.config import ModelConfig, TrainConfig
from trainer.data.batches import Batch
from trainer.step import prototype_loss, teacher
from trainer.step.objective import Metrics, Objective
from trainer.step.state import State

TrainStep = Callable[[State, Batch], tuple[State, Metrics]]


def make_train_step(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    teacher_model: ModelConfig | None = None,
) -> TrainStep:
    """Returns the jitted step. It donates its state: use the one that it returns.

    `teacher_model` is the model of a frozen teacher.
    """
    objective = Objective(config, mesh, teacher_model)
    ssl = config.self_supervision

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        params = state["params"]
        (value, aux), gradients = objective.gradients(params, state, batch)
        metrics, mean_logits = aux
        updates, opt_state = optimizer.update(gradients, state["opt_state"], params)
        params = optax.apply_updates(params, updates)
        centers = {
            name: prototype_loss.update_center(
                center, mean_logits[name], ssl.center_momentum
            )
            for name, center in state["centers"].items()
        }
        state = {
            "params": params,
            "teacher": teacher.update_teacher(
                state["teacher"], params, state["step"], config.n_steps, ssl
            ),
            "centers": centers,
            "opt_state": opt_state,
            "step": state["step"] + 1,
        }
        norm = optax.tree.norm(gradients)
        return state, {"loss": value, **metrics, "gradient_norm": norm}

    return jax.jit(train_step, donate_argnums=0)
