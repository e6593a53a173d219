"""The optimizer: clipping, AdamW or Adafactor, weight decay, schedule."""

import operator
import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32

from recipes.validation import require
from trainer.config import Optimizer, OptimizerConfig, Schedule
from trainer.distributed.sharding import join_path
from trainer.step.state import State

IS_SKIPPED = "is_skipped"  # a metric: 1 if a step left the state as it was, else 0

Metrics = dict[str, Float[Array, ""]]

# Matrices and the embedding table decay. Biases, norms, positions, CLS tokens and
# temperatures do not.
_DECAYED = ("kernel", "emb_var")

_BLOCK = re.compile(r"(vision|text)/.*encoderblock_(\d+)/")
_EMBEDDINGS = r"/ToTokenSequence_0/|/token_emb/|^mask_token$"

_BETA2_POWER = 0.8  # of Adafactor's schedule, as in its paper (arXiv:1804.04235)


def make_optimizer(
    config: OptimizerConfig, n_steps: int
) -> optax.GradientTransformation:
    """Returns clipping, scaling, decoupled weight decay and the schedule, in this
    order, for the parameters that are not frozen.

    Weight decay subtracts `learning_rate * weight_decay` times the parameters per step.
    """
    chain = optax.chain(
        _clip(config),
        _scale_gradients(config),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        _scale_layers(config.layer_decay),
        optax.scale_by_learning_rate(learning_rate_schedule(config, n_steps)),
        _hold_prototypes(config.n_frozen_head_steps),
    )
    if not config.frozen_patterns:
        return chain

    def is_frozen(params: dict) -> dict:
        return frozen_mask(params, config)

    def is_trained(params: dict) -> dict:
        return jax.tree.map(operator.not_, is_frozen(params))

    return optax.chain(
        optax.masked(chain, is_trained), optax.masked(optax.set_to_zero(), is_frozen)
    )


def _scale_layers(decay: float) -> optax.GradientTransformation:
    """Multiplies updates, decay of weights included, by `layer_scales`."""
    if decay == 1:
        return optax.identity()

    def scale(updates: dict, _: dict | None) -> dict:
        return jax.tree.map(operator.mul, updates, layer_scales(updates, decay))

    return optax.stateless(scale)


def layer_scales(params: dict, decay: float) -> dict:
    """Returns the share of the learning rate of each parameter.

    It is `decay ** n` with n the number of steps from the output of its encoder: 1 for
    the last block, one more than blocks for embeddings, positions, CLS tokens and mask
    token. All else, with the final norm, has the whole learning rate.
    Source: DINOv2, arXiv:2304.07193, `dinov2/utils/param_groups.py`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    blocks = [_BLOCK.match(join_path(path)) for path, _ in leaves]
    n_blocks = {"vision": 0, "text": 0}
    for block in filter(None, blocks):
        n_blocks[block[1]] = max(n_blocks[block[1]], int(block[2]) + 1)

    def scale(path: tuple, _: Array) -> float:
        name = join_path(path)
        if block := _BLOCK.match(name):
            return decay ** (n_blocks[block[1]] - int(block[2]))
        if re.search(_EMBEDDINGS, name):
            tower = "text" if name.startswith("text/") else "vision"
            return decay ** (n_blocks[tower] + 1)
        return 1.0

    return jax.tree_util.tree_map_with_path(scale, params)


def _hold_prototypes(n_steps: int) -> optax.GradientTransformation:
    """Sets the learning rate of the head's last layer to 0 for a number of steps.

    As in DINO and DINOv2; as in the latter, the optimizer already measures gradients.
    Source: Caron et al. 2021, arXiv:2104.14294, `freeze_last_layer`.
    """
    if not n_steps:
        return optax.identity()
    is_over = optax.scale_by_schedule(lambda step: (step >= n_steps).astype(float))
    return optax.masked(is_over, _prototypes_mask)


def _prototypes_mask(params: dict) -> dict:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "/prototypes/" in join_path(path), params
    )


def _clip(config: OptimizerConfig) -> optax.GradientTransformation:
    """Scales gradients down to the highest norm, all together or module by module."""
    clip = optax.clip_by_global_norm(config.max_gradient_norm)
    if not config.clip_by_module:
        return clip

    def clip_modules(gradients: dict, _: dict | None) -> dict:
        return {
            name: clip.update(part, optax.EmptyState())[0]
            for name, part in gradients.items()
        }

    return optax.stateless(clip_modules)


def gradient_norms(gradients: dict, config: OptimizerConfig) -> Metrics:
    """Returns the norm of all trained parameters, and of those of each module."""
    trained = jax.tree.map(
        lambda gradient, is_frozen: None if is_frozen else gradient,
        gradients,
        frozen_mask(gradients, config),
    )
    norms = {
        f"gradient_norm_{name}": optax.tree.norm(part)
        for name, part in trained.items()
        if jax.tree.leaves(part)
    }
    return {"gradient_norm": optax.tree.norm(trained), **norms}


def skip_nonfinite(old: State, new: State, metrics: Metrics) -> tuple[State, Metrics]:
    """Returns the old state, one step later, if loss or gradient are not finite.

    Adds the metric `IS_SKIPPED`.
    """
    is_finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
    kept = jax.tree.map(lambda a, b: jnp.where(is_finite, b, a), old, new)
    is_skipped = 1 - is_finite.astype(float)
    return kept | {"step": new["step"]}, metrics | {IS_SKIPPED: is_skipped}


def frozen_mask(params: dict, config: OptimizerConfig) -> dict:
    """Returns True for parameters that stay as they started, in a tree like `params`.

    Such parameters have no state, no decay, and count in no norm.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(
            re.fullmatch(pattern, join_path(path)) for pattern in config.frozen_patterns
        ),
        params,
    )


def frozen_modules(params: dict, config: OptimizerConfig) -> set[str]:
    """Returns the groups of parameters of which all stay as they started."""
    mask = frozen_mask(params, config)
    return {name for name, part in mask.items() if all(jax.tree.leaves(part))}


def decaying(params: dict, groups: Iterable[str], config: OptimizerConfig) -> list[str]:
    """Returns those of the groups of parameters that decay even without gradients."""
    if not config.weight_decay:
        return []
    masks = decay_mask(params), frozen_mask(params, config)
    shrinks = jax.tree.map(lambda decays, frozen: decays and not frozen, *masks)
    return [name for name in groups if any(jax.tree.leaves(shrinks[name]))]


def check_frozen(params: dict, config: OptimizerConfig) -> None:
    """Raises ValueError unless every pattern matches a parameter, and one is left."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [join_path(path) for path, _ in leaves]
    for number, pattern in enumerate(config.frozen):
        require(
            any(re.fullmatch(pattern, path) for path in paths),
            f"optimizer.frozen.{number}={pattern}",
            f"a pattern of whole paths of parameters, such as {paths[0]}",
        )
    patterns = config.frozen_patterns
    require(
        not all(jax.tree.leaves(frozen_mask(params, config))),
        f"optimizer.frozen={patterns}",
        "patterns that leave a parameter to train",
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
