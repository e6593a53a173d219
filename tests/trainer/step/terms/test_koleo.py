import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.step.terms.koleo import EPSILON, KoLeo, koleo

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(6, 5))
value_and_slope = jax.jit(jax.value_and_grad(koleo))


def plain(features):
    """The definition, loop by loop."""
    x = features / np.linalg.norm(features, axis=1, keepdims=True)
    total = 0.0
    for i in range(len(x)):
        others = [np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i]
        total -= np.log(min(others))
    return total / len(x)


def test_it_is_minus_the_mean_log_distance_to_the_nearest_neighbor():
    value, slope = value_and_slope(jnp.float32(FEATURES))
    assert float(value) == pytest.approx(plain(FEATURES), rel=1e-5)
    direction = RNG.normal(size=FEATURES.shape)
    ends = [plain(FEATURES + sign * 1e-6 * direction) for sign in (1, -1)]
    expected = (ends[0] - ends[1]) / 2e-6
    assert float((slope * direction).sum()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("n_rows", [1, 2, 4, 6])
def test_chunks_of_rows_do_not_matter(n_rows):
    whole = value_and_slope(jnp.float32(FEATURES))
    in_chunks = functools.partial(koleo, n_rows_per_chunk=n_rows)
    found = jax.jit(jax.value_and_grad(in_chunks))(jnp.float32(FEATURES))
    for ours, theirs in zip(found, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_lengths_and_order_do_not_matter():
    value, _ = value_and_slope(jnp.float32(FEATURES))
    other, _ = value_and_slope(jnp.float32(7 * FEATURES[::-1]))
    assert float(other) == pytest.approx(float(value), rel=1e-5)


def test_equal_images_have_a_finite_value_and_no_gradient():
    value, slope = value_and_slope(jnp.ones((6, 5)))
    assert float(value) == pytest.approx(-np.log(EPSILON), rel=1e-5)
    assert not slope.any()


def test_a_batch_of_one_image_has_nothing_to_spread():
    value, slope = jax.value_and_grad(koleo)(jnp.float32(FEATURES[:1]))
    assert float(value) == 0
    assert not slope.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token": 3}, "token=3: expected 1 or 2"),
        ({"view": "local"}, "view=local: expected whole or masked"),
    ],
)
def test_settings_out_of_bounds_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        KoLeo(**settings)
