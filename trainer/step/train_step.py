"""The train step: one jitted function from state and batch to state and metrics.

It takes the gradient of `trainer.step.objective`, and computes the next parameters,
the next teacher and what the terms keep from it. Nothing here is random.
"""

from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh

from trainer.config import ModelConfig, TrainConfig
from trainer.data.batches import Batch
from trainer.distributed import sharding
from trainer.step import teacher
from trainer.step.objective import Objective
from trainer.step.optimizer import gradient_norms, skip_nonfinite
from trainer.step.state import State, abstract_state
from trainer.step.terms.kept import next_kept
from trainer.step.terms.term import Metrics

TrainStep = Callable[[State, Batch], tuple[State, Metrics]]


def make_train_step(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    teacher_model: ModelConfig | None = None,
) -> TrainStep:
    """Returns the jitted step. It donates its state: use the one that it returns.

    On a mesh, the state comes and goes in the shardings of `abstract_state`, so that
    one compilation serves all steps. `teacher_model` is the model of a frozen teacher.
    """
    objective = Objective(config, mesh, teacher_model)
    ssl = config.self_supervision

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        params = state["params"]
        (value, aux), gradients = objective.gradients(params, state, batch)
        metrics, statistics = aux
        updates, opt_state = optimizer.update(gradients, state["opt_state"], params)
        params = optax.apply_updates(params, updates)
        kept = next_kept(objective.weighted, state, statistics, params)
        after = {
            "params": params,
            "teacher": teacher.update_teacher(
                state["teacher"], params, state["step"], config.n_steps, ssl
            ),
            **kept,
            "opt_state": opt_state,
            "step": state["step"] + 1,
        }
        norms = gradient_norms(gradients, config.optimizer)
        metrics = {"loss": value, **metrics, **norms}
        if config.optimizer.skip_nonfinite:
            return skip_nonfinite(state, after, metrics)
        return after, metrics

    if mesh is None:
        return jax.jit(train_step, donate_argnums=0)
    shapes = abstract_state(config, optimizer, mesh, teacher_model)
    places = jax.tree.map(lambda x: x.sharding, shapes)
    return jax.jit(
        train_step,
        in_shardings=(places, sharding.batch_sharding(mesh)),
        out_shardings=(places, sharding.replicated(mesh)),
        donate_argnums=0,
    )
