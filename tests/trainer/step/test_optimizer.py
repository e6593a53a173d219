import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trainer import config
from trainer.distributed.sharding import join_path
from trainer.models import two_tower
from trainer.step.optimizer import (
    IS_SKIPPED,
    check_frozen,
    decay_mask,
    decaying,
    frozen_mask,
    gradient_norms,
    layer_scales,
    learning_rate_schedule,
    make_optimizer,
    skip_nonfinite,
)

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
@pytest.mark.parametrize(
    "fields",
    [{"is_text_frozen": True}, {"frozen": ("text/.*",)}, {"frozen": ("te.*",)}],
)
def test_a_frozen_part_stays_and_counts_in_no_norm(optimizer, fields):
    settings = dataclasses.replace(
        ADAMW, optimizer=optimizer, weight_decay=0.5, **fields
    )
    layer = {"kernel": jnp.full((3, 3), 2.0)}
    params = {"vision": layer, "text": layer}
    gradients = {"vision": layer, "text": {"kernel": jnp.full((3, 3), 1e6)}}
    update = one_update(settings, params, gradients)
    np.testing.assert_array_equal(update["text"]["kernel"], 0)
    alone = one_update(settings, {"vision": layer}, {"vision": layer})
    jax.tree.map(np.testing.assert_array_equal, update["vision"], alone["vision"])
    found = gradient_norms(gradients, settings)
    assert found == {"gradient_norm": 6.0, "gradient_norm_vision": 6.0}


@pytest.mark.parametrize("optimizer", list(config.Optimizer))
def test_frozen_parameters_are_bit_equal_after_steps_and_have_no_state(tiny, optimizer):
    frozen = ("vision/.*/encoderblock_0/.*", "text/.*", "mask_token", ".*/embedding/.*")
    settings = dataclasses.replace(
        ADAMW, optimizer=optimizer, weight_decay=0.5, frozen=frozen
    )
    start = two_tower.init_params(tiny.model, 0, has_head=True)
    mask = frozen_mask(start, settings)
    chain = make_optimizer(settings, n_steps=100)
    state, params, update = chain.init(start), start, jax.jit(chain.update)
    for _ in range(3):
        updates, state = update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)

    def is_same(before, after):
        return before.tobytes() == after.tobytes()

    same = jax.tree.map(is_same, start, params)
    assert jax.tree.leaves(same) == jax.tree.leaves(mask)
    kept = {path for path in state_paths(state) if "LayerNorm_0/scale" in path}
    assert kept == set()
    head = {path for path in state_paths(state) if "prototypes/kernel" in path}
    assert head


def state_paths(state):
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [join_path(path) for path, _ in leaves]


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (
            ("text/.*", "vision"),
            "optimizer.frozen.1=vision: expected a pattern of whole paths of parameters"
            ", such as head/",
        ),
        ((".*",), "optimizer.frozen=('.*',): expected patterns that leave a parameter"),
    ],
)
def test_patterns_of_nothing_and_of_everything_are_refused(tiny, frozen, message):
    params = two_tower.abstract_params(tiny.model, has_head=True)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (read below)
        check_frozen(params, dataclasses.replace(ADAMW, frozen=frozen))
    assert str(error.value).startswith(message)


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


def test_gradients_can_be_clipped_module_by_module():
    settings = dataclasses.replace(ADAMW, clip_by_module=True)
    chain = make_optimizer(settings, n_steps=100)
    gradients = {"head": {"a": jnp.full(4, 150.0)}, "vision": {"a": jnp.full(4, 0.2)}}
    params = jax.tree.map(jnp.zeros_like, gradients)
    _, state = jax.jit(chain.update)(gradients, chain.init(params), params)
    parts = jax.tree.leaves(state, is_leaf=is_adam)
    (adam,) = [part for part in parts if is_adam(part)]
    means = [float(adam.mu[name]["a"][0]) / 0.1 for name in ("head", "vision")]
    assert means == pytest.approx([0.5, 0.2])


def test_the_norm_of_every_module_is_measured():
    gradients = {"head": {"a": jnp.array([3.0])}, "mask_token": jnp.array([4.0])}
    assert gradient_norms(gradients, ADAMW) == {
        "gradient_norm": 5.0,
        "gradient_norm_head": 3.0,
        "gradient_norm_mask_token": 4.0,
    }


def test_the_learning_rate_of_a_layer_falls_with_its_distance_from_the_output(tiny):
    model = dataclasses.replace(
        tiny.model,
        vision=dataclasses.replace(tiny.model.vision, n_layers=2),
        text=dataclasses.replace(tiny.model.text, n_layers=3),
    )
    params = two_tower.abstract_params(model, has_head=True)
    leaves = jax.tree_util.tree_leaves_with_path(layer_scales(params, 0.5))
    found = {join_path(path): scale for path, scale in leaves}

    def scales(pattern):
        return {scale for path, scale in found.items() if re.match(pattern, path)}

    tokens = "vision/encoder/ToTokenSequence_0/"
    assert scales(tokens) == scales("mask_token") == {0.125}
    assert scales("vision/.*/encoderblock_0/") == {0.25}
    assert scales("vision/.*/encoderblock_1/") == {0.5}
    assert scales("text/token_emb/") == {0.0625}
    assert scales("text/.*/encoderblock_0/") == {0.125}
    assert scales("text/.*/encoderblock_2/") == {0.5}
    assert scales("vision/.*norm") == scales("text/text_encoder_norm") == {1.0}
    assert scales("head/") == scales("log_temperature") == {1.0}


def test_what_decays_although_nothing_trains_it_is_named(tiny):
    params = two_tower.abstract_params(tiny.model, has_head=True)
    groups = ["log_temperature_alt_text", "text", "vision"]
    assert decaying(params, groups, ADAMW) == []
    settings = dataclasses.replace(ADAMW, weight_decay=0.1)
    assert decaying(params, groups, settings) == ["text", "vision"]
    frozen = dataclasses.replace(settings, is_text_frozen=True)
    assert decaying(params, groups, frozen) == ["vision"]


def test_layer_decay_scales_updates_and_weight_decay():
    block = {"encoderblock_0": {"kernel": jnp.full((2, 2), 3.0)}}
    params = {"vision": {"transformer": block}}
    settings = dataclasses.replace(ADAMW, weight_decay=0.5)
    less = dataclasses.replace(settings, layer_decay=0.25)
    (whole,) = jax.tree.leaves(one_update(settings, params, params))
    (part,) = jax.tree.leaves(one_update(less, params, params))
    np.testing.assert_allclose(part, 0.25 * whole, rtol=1e-6)


def test_prototypes_stay_for_the_first_steps_and_then_learn():
    settings = dataclasses.replace(
        ADAMW, n_warmup_steps=0, weight_decay=0.5, n_frozen_head_steps=2
    )
    layer = {"kernel": jnp.ones((2, 2))}
    params = {"head": {"shared": {"prototypes": layer, "Dense_0": layer}}}
    chain = make_optimizer(settings, n_steps=100)
    state, update = chain.init(params), jax.jit(chain.update)
    moves = []
    for _ in range(4):
        updates, state = update(params, state, params)
        head = updates["head"]["shared"]
        moves.append([bool(head[name]["kernel"].any()) for name in head])
    assert moves == [[True, False]] * 2 + [[True, True]] * 2


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0])
def test_a_step_that_is_not_finite_leaves_the_state_as_it_was(name, value):
    before = {"params": {"a": jnp.ones(2)}, "centers": {}, "step": jnp.int32(4)}
    after = {"params": {"a": jnp.full(2, value)}, "centers": {}, "step": jnp.int32(5)}
    metrics = {"loss": jnp.float32(1), "gradient_norm": jnp.float32(1)}
    metrics |= {name: jnp.float32(value)}
    state, found = jax.jit(skip_nonfinite)(before, after, metrics)
    np.testing.assert_array_equal(state["params"]["a"], 1)
    assert int(state["step"]) == 5
    assert float(found[IS_SKIPPED]) == (value != 1)


def is_adam(part):
    return hasattr(part, "mu")


def adafactor(**fields):
    fields = {"max_gradient_norm": 1e9, **fields}  # no clipping
    return dataclasses.replace(ADAMW, optimizer=config.Optimizer.ADAFACTOR, **fields)


@pytest.mark.parametrize("shape", [(33, 40), (32, 5, 48), (31, 64), (7,)])
@pytest.mark.parametrize("cap", [0.999, 0.5])
def test_adafactor_is_the_published_rule(shape, cap):
    """The rule of arXiv:2106.04560, section 3.4, in float64, over six steps."""
    settings = adafactor(
        beta2_cap=cap, momentum_dtype="float32", n_warmup_steps=0, learning_rate=1.0
    )
    settings = dataclasses.replace(settings, schedule=config.Schedule.RSQRT)
    rng = np.random.default_rng(0)
    steps = [rng.normal(size=shape) for _ in range(6)]
    rates = [1, 1, 2**-0.5, 3**-0.5, 4**-0.5, 5**-0.5]  # of learning
    params = {"kernel": jnp.zeros(shape)}
    chain = make_optimizer(settings, n_steps=100)
    update, state = jax.jit(chain.update), chain.init(params)
    for step, (rate, gradient) in enumerate(zip(rates, steps, strict=True)):
        found, state = update({"kernel": jnp.asarray(gradient)}, state, params)
        expected = -rate * adafactor_reference(steps[: step + 1], cap)
        if step > 0:  # the rate of the first step is 0 / 1
            np.testing.assert_allclose(found["kernel"], expected, rtol=3e-5, atol=1e-6)


def adafactor_reference(gradients, cap):
    """The mean of scaled gradients after the last of them."""
    shape = gradients[0].shape
    first, second = sorted(np.argsort(shape)[-2:]) if len(shape) > 1 else (0, 0)
    is_factored = len(shape) > 1 and min(shape[first], shape[second]) >= 32
    squares = np.zeros(shape)
    rows = np.zeros(1)
    columns = np.zeros(1)
    mean = np.zeros(shape)
    for t, gradient in enumerate(gradients, start=1):
        beta2 = min(cap, 1 - t**-0.8)
        square = gradient**2 + 1e-30
        if is_factored:
            row = square.mean(second, keepdims=True)
            column = square.mean(first, keepdims=True)
            rows = beta2 * rows + (1 - beta2) * row
            columns = beta2 * columns + (1 - beta2) * column
            squares = rows * columns / rows.mean(first, keepdims=True)
        else:
            squares = beta2 * squares + (1 - beta2) * square
        mean = 0.9 * mean + 0.1 * gradient / np.sqrt(squares)
    return mean


def test_adafactor_caps_the_weight_of_old_squares():
    """After many steps of zeros, one gradient is divided by sqrt(1 - cap) of itself."""
    for cap in (0.9, 0.99):
        rsqrt = config.Schedule.RSQRT
        settings = adafactor(beta2_cap=cap, beta1=0.0, schedule=rsqrt)
        params = {"bias": jnp.zeros(3)}
        update = one_update(settings, params, {"bias": jnp.ones(3)}, n_before=400)
        rate = float(learning_rate_schedule(settings, 100)(400))
        size = -float(update["bias"][0]) / rate
        assert size == pytest.approx((1 - cap) ** -0.5, rel=1e-3)


def n_bytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_adafactors_state_of_g14_takes_half_the_bytes_of_its_parameters():
    model = config.tips_model("g/14", position_grid=(32, 32))
    params = two_tower.abstract_params(model, has_head=True)
    chain = make_optimizer(adafactor(), n_steps=100)
    state = jax.eval_shape(chain.init, params)
    assert 0.5 < n_bytes(state) / n_bytes(params) < 0.51
    types = {x.dtype.name for x in jax.tree.leaves(state) if x.size > 10**6}
    assert types == {"bfloat16"}


def test_adafactor_keeps_one_copy_and_two_sums_of_a_matrix():
    chain = make_optimizer(adafactor(), n_steps=100)
    state = jax.eval_shape(chain.init, {"kernel": jnp.zeros((32, 48))})
    sizes = sorted(x.size for x in jax.tree.leaves(state))
    assert sizes[-3:] == [32, 48, 32 * 48]  # rows, columns, momentum
