import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from trainer import losses

RNG = np.random.default_rng(0)
IMAGE, TEXT = RNG.normal(size=(2, 6, 5))
TEMPERATURE = jnp.float32(0.2)
info_nce = jax.jit(losses.info_nce)
gradients = jax.jit(jax.grad(losses.info_nce, argnums=(0, 1, 2)))
TERMS = (losses.ALT_TEXT, losses.SYNTHETIC_CAPTION)


def loss(image=IMAGE, text=TEXT, temperature=TEMPERATURE):
    return info_nce(jnp.float32(image), jnp.float32(text), jnp.float32(temperature))


@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.02])
def test_the_loss_equals_its_plain_reference(temperature):
    expected = reference.info_nce(IMAGE, TEXT, temperature)
    assert float(loss(temperature=temperature)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("argument", range(3))
def test_the_gradient_equals_finite_differences(argument):
    point = [IMAGE, TEXT, np.array(0.2)]
    gradient = gradients(*map(jnp.float32, point))[argument]
    direction = RNG.normal(size=point[argument].shape)
    ends = []
    for sign in (1, -1):
        moved = list(point)
        moved[argument] = point[argument] + sign * 1e-5 * direction
        ends.append(reference.info_nce(*moved))
    expected = (ends[0] - ends[1]) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4)


def test_features_that_tell_nothing_apart_cost_the_logarithm_of_the_batch():
    same = np.ones((6, 5))
    assert float(loss(same, same)) == pytest.approx(math.log(6), rel=1e-6)
    assert losses.chance_levels(6) == {f"{t}_chance": math.log(6) for t in TERMS}


def test_random_features_cost_about_the_logarithm_of_the_batch():
    image, text = RNG.normal(size=(2, 256, 512))
    assert float(loss(image, text, 1.0)) == pytest.approx(math.log(256), abs=0.01)


def test_matching_features_cost_nothing_at_a_low_temperature():
    assert float(loss(np.eye(6), np.eye(6), 0.01)) == pytest.approx(0, abs=1e-6)


def test_the_order_of_the_batch_does_not_matter():
    order = RNG.permutation(6)
    assert float(loss(IMAGE[order], TEXT[order])) == pytest.approx(float(loss()), 1e-6)


def test_the_order_of_one_side_does():
    assert float(loss(IMAGE, TEXT[::-1])) != pytest.approx(float(loss()), rel=1e-2)


def test_image_and_text_may_be_swapped():
    assert float(loss(TEXT, IMAGE)) == pytest.approx(float(loss()), rel=1e-6)


def test_lengths_of_features_do_not_matter():
    assert float(loss(7 * IMAGE, TEXT / 9)) == pytest.approx(float(loss()), rel=1e-6)


def test_a_row_of_zeros_has_a_finite_loss_and_gradient():
    image = jnp.float32(IMAGE).at[2].set(0)
    assert np.isfinite(loss(image))
    gradient, _, _ = gradients(image, jnp.float32(TEXT), TEMPERATURE)
    assert np.isfinite(gradient).all()


def test_a_scale_beyond_100_is_not_clamped():
    close = np.eye(2) + 0.99
    expected = reference.info_nce(close, close, 1 / 250)
    assert float(loss(close, close, 1 / 250)) == pytest.approx(expected, rel=1e-3)
    assert expected != pytest.approx(reference.info_nce(close, close, 1 / 100), rel=0.1)


def terms_of(cls, alt_text, synthetic_caption, t_alt_text, t_synthetic_caption):
    texts = {"alt_text": alt_text, "synthetic_caption": synthetic_caption}
    temperatures = {"alt_text": t_alt_text, "synthetic_caption": t_synthetic_caption}
    return losses.contrastive_terms(cls, texts, temperatures)


def test_each_term_reaches_its_own_token_text_and_temperature_only():
    cls = jnp.float32(RNG.normal(size=(6, 2, 5)))
    inputs = (cls, jnp.float32(IMAGE), jnp.float32(TEXT), TEMPERATURE, TEMPERATURE)
    jacobian = jax.jit(jax.jacrev(terms_of, argnums=range(5)))(*inputs)
    reached = {
        term: [bool(np.any(part)) for part in (g[0][:, 0], g[0][:, 1], *g[1:])]
        for term, g in jax.device_get(jacobian).items()
    }
    assert reached == {
        losses.ALT_TEXT: [True, False, True, False, True, False],
        losses.SYNTHETIC_CAPTION: [False, True, False, True, False, True],
    }


def test_the_total_is_the_mean_of_both_terms():
    terms = dict(zip(TERMS, jnp.float32([1.0, 4.0]), strict=True))
    assert float(losses.total(terms)) == 2.5
