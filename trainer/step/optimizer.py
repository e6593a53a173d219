"""The optimizer: clipping, AdamW or Adafactor, weight decay, schedule."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32

from trainer.config import Optimizer, OptimizerConfig, Schedule

# Matrices and the embedding table decay. Biases, norms, positions, CLS tokens and
# temperatures do not.
_DECAYED = ("kernel", "emb_var")

_BETA2_POWER = 0.8  # of Adafactor's schedule, as in its paper (arXiv:1804.04235)


def make_optimizer(
    config: OptimizerConfig, n_steps: int
) -> optax.GradientTransformation:
    """Returns clipping, scaling, decoupled weight decay and the schedule, in this
    order.

    Weight decay subtracts `learning_rate * weight_decay` times the parameters per step.
    """
    return optax.chain(
        _freeze_text(config),
        optax.clip_by_global_norm(config.max_gradient_norm),
        _scale_gradients(config),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(learning_rate_schedule(config, n_steps)),
        _freeze_text(config),
    )


def _freeze_text(config: OptimizerConfig) -> optax.GradientTransformation:
    """First, so that frozen parameters enter no norm; last, so they do not decay."""
    if not config.is_text_frozen:
        return optax.identity()
    return optax.masked(optax.set_to_zero(), _text_mask)


def _text_mask(params: dict) -> dict:
    """True for the parameters of the text encoder."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[0].key == "text", params
    )


def learning_rate_schedule(config: OptimizerConfig, n_steps: int) -> optax.Schedule:
    """Linear from 0 to the highest rate, then a cosine to 0 at `n_steps`, or 1 / sqrt.

    The latter is `learning_rate * sqrt(n_warmup_steps / step)`.
    """
    if config.schedule is Schedule.RSQRT:
        return _reciprocal_square_root(config)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.n_warmup_steps,
        decay_steps=n_steps,
    )


def _reciprocal_square_root(config: OptimizerConfig) -> optax.Schedule:
    n = max(config.n_warmup_steps, 1)

    def rate(step: Float[Array, ""]) -> Float[Array, ""]:
        return config.learning_rate * jnp.minimum(
            step / n, jnp.sqrt(n / jnp.maximum(step, 1))
        )

    return rate


def decay_mask(params: dict) -> dict:
    """Returns True for parameters that decay, in a nested dictionary like `params`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in _DECAYED, params
    )


def _scale_gradients(config: OptimizerConfig) -> optax.GradientTransformation:
    """Scales gradients to updates of about unit size, and averages them."""
    if config.optimizer is Optimizer.ADAMW:
        return optax.scale_by_adam(config.beta1, config.beta2)
    return _scale_by_adafactor(config)


def _scale_by_adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adafactor for vision: neither clips updates nor scales them by the parameters.

    Divides by the root of a factored mean of squares, whose weight of the old mean has
    a cap, and averages the result in `momentum_dtype`.
    Source: Zhai et al. 2022, arXiv:2106.04560, section 3.4; `scale_by_adafactor` of
    google-research/big_vision.
    """

    def beta2_at(step: Int32[Array, ""], power: float) -> Float[Array, ""]:
        done = step.astype(jnp.float32) + 1
        return jnp.minimum(config.beta2_cap, 1 - done**-power)

    return optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=_BETA2_POWER,
            min_dim_size_to_factor=config.min_factored,
            decay_rate_fn=beta2_at,
        ),
        optax.ema(config.beta1, debias=False, accumulator_dtype=config.momentum_dtype),
    )
