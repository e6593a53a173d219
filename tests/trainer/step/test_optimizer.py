import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer import config
from trainer.models import two_tower
from trainer.step.optimizer import decay_mask, learning_rate_schedule, make_optimizer

ADAMW = config.OptimizerConfig(learning_rate=0.1, n_warmup_steps=4, weight_decay=0.0)


def test_the_learning_rate_rises_and_falls_to_zero():
    rate = learning_rate_schedule(ADAMW, n_steps=20)
    rates = [float(rate(step)) for step in (0, 2, 4, 12, 20)]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.05, 0])


def test_only_matrices_and_embeddings_decay(tiny):
    mask = decay_mask(two_tower.abstract_params(tiny.model))
    kept = {
        path[-1].key
        for path, is_decayed in jax.tree_util.tree_leaves_with_path(mask)
        if not is_decayed
    }
    assert kept == {
        "bias",
        "scale",
        "posembed_input",
        "cls",
        "log_temperature_alt_text",
        "log_temperature_synthetic_caption",
    }
    assert mask["text"]["token_emb"]["emb_var"]
    assert mask["vision"]["encoder"]["ToTokenSequence_0"]["embedding"]["kernel"]


def one_update(optimizer_config, params, gradients, n_before=4):
    """The update at the top of the learning rate, after some without gradient."""
    optimizer = make_optimizer(optimizer_config, n_steps=100)
    update = jax.jit(optimizer.update)
    state = optimizer.init(params)
    zeros = jax.tree.map(jnp.zeros_like, gradients)
    for _ in range(n_before):
        _, state = update(zeros, state, params)
    return update(gradients, state, params)[0]


@pytest.mark.parametrize("optimizer", list(config.Optimizer))
def test_decay_takes_a_share_of_the_learning_rate_off(optimizer):
    settings = dataclasses.replace(ADAMW, optimizer=optimizer, weight_decay=0.5)
    params = {"kernel": jnp.full((3, 3), 2.0), "bias": jnp.full(3, 2.0)}
    update = one_update(settings, params, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_allclose(update["kernel"], -0.1 * 0.5 * 2, rtol=1e-5)
    np.testing.assert_array_equal(update["bias"], 0)


@pytest.mark.parametrize("optimizer", list(config.Optimizer))
def test_a_frozen_text_encoder_stays_and_counts_in_no_norm(optimizer):
    settings = dataclasses.replace(
        ADAMW, optimizer=optimizer, weight_decay=0.5, is_text_frozen=True
    )
    layer = {"kernel": jnp.full((3, 3), 2.0)}
    params = {"vision": layer, "text": layer}
    gradients = {"vision": layer, "text": {"kernel": jnp.full((3, 3), 1e6)}}
    update = one_update(settings, params, gradients)
    np.testing.assert_array_equal(update["text"]["kernel"], 0)
    alone = one_update(settings, {"vision": layer}, {"vision": layer})
    jax.tree.map(np.testing.assert_array_equal, update["vision"], alone["vision"])


@pytest.mark.parametrize("optimizer", list(config.Optimizer))
def test_a_step_goes_against_the_gradient(optimizer):
    settings = dataclasses.replace(ADAMW, optimizer=optimizer)
    params = {"kernel": jnp.zeros((2, 2))}
    signs = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    update = one_update(settings, params, {"kernel": signs * 0.01}, n_before=4)
    np.testing.assert_array_equal(jnp.sign(update["kernel"]), -signs)


def test_the_norm_of_all_gradients_together_is_clipped():
    settings = dataclasses.replace(ADAMW, max_gradient_norm=1.0)
    chain = make_optimizer(settings, n_steps=100)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradients = {"a": jnp.array([30.0]), "b": jnp.array([40.0])}
    _, state = jax.jit(chain.update)(gradients, chain.init(params), params)
    parts = jax.tree.leaves(state, is_leaf=is_adam)
    (adam,) = [part for part in parts if is_adam(part)]
    means = [float(adam.mu[name][0]) / (1 - settings.beta1) for name in "ab"]
    assert means == pytest.approx([0.6, 0.8])


def is_adam(part):
    return hasattr(part, "mu")


def test_adafactor_keeps_one_copy_and_two_sums_of_a_large_matrix():
    settings = dataclasses.replace(ADAMW, optimizer=config.Optimizer.ADAFACTOR)
    chain = make_optimizer(settings, n_steps=100)
    state = jax.eval_shape(chain.init, {"kernel": jnp.zeros((256, 512))})
    sizes = sorted(x.size for x in jax.tree.leaves(state))
    assert sizes[-3:] == [256, 512, 256 * 512]  # rows, columns, momentum
