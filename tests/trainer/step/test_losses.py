import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import reference
from trainer.config import (
    ContrastiveLoss,
    ContrastivePair,
    PatchLoss,
    PatchReduction,
    SelfSupervisionConfig,
    Text,
)
from trainer.step import losses
from trainer.step.terms.contrastive import Contrastive

RNG = np.random.default_rng(0)
IMAGE, TEXT = RNG.normal(size=(2, 6, 5))
TEMPERATURE = jnp.float32(0.2)
info_nce = jax.jit(losses.info_nce)
gradients = jax.jit(jax.grad(losses.info_nce, argnums=(0, 1, 2)))


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


CONTRASTIVE = {
    "info_nce": (losses.info_nce, reference.info_nce, (0.2,)),
    "sigmoid": (losses.sigmoid, reference.sigmoid_loss, (0.2, -1.5)),
}


@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.02])
@pytest.mark.parametrize("bias", [0.0, -10.0])
def test_the_sigmoid_loss_equals_its_plain_reference(temperature, bias):
    expected = reference.sigmoid_loss(IMAGE, TEXT, temperature, bias)
    found = losses.sigmoid(*map(jnp.float32, (IMAGE, TEXT, temperature, bias)))
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n_rows_per_chunk", [1, 4, 6, 64])
@pytest.mark.parametrize("name", CONTRASTIVE)
def test_chunks_of_any_size_have_the_same_loss_and_gradients(name, n_rows_per_chunk):
    loss, plain, parameters = CONTRASTIVE[name]
    point = [IMAGE, TEXT, *map(np.array, parameters)]
    chunked = functools.partial(loss, n_rows_per_chunk=n_rows_per_chunk)
    both = jax.jit(jax.value_and_grad(chunked, range(len(point))))
    value, gradient = both(*map(jnp.float32, point))
    assert float(value) == pytest.approx(plain(*point), rel=1e-5)
    for i, part in enumerate(gradient):
        direction = RNG.normal(size=part.shape)
        ends = []
        for sign in (1, -1):
            moved = list(point)
            moved[i] = point[i] + sign * 1e-6 * direction
            ends.append(plain(*moved))
        slope = (ends[0] - ends[1]) / 2e-6
        assert float((part * direction).sum()) == pytest.approx(slope, 2e-5, 1e-7)


def test_the_best_bias_of_features_that_tell_nothing_apart_gives_chance():
    same, bias = np.ones((6, 5)), -1 / 0.2 - math.log(5)
    found = losses.sigmoid(*map(jnp.float32, (same, same, 0.2, bias)))
    pair = ContrastivePair(token=1, text=Text.ALT_TEXT, weight=1.0)
    chance = Contrastive(pair, ContrastiveLoss.SIGMOID).chance(6)
    assert float(found) == pytest.approx(chance, rel=1e-5)


ENTROPIES = RNG.uniform(1, 9, size=(3, 5))
MASK = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
IBOT = SelfSupervisionConfig(patch_loss=PatchLoss.IBOT)
ALL = SelfSupervisionConfig()


def separate(visible_weight):
    return SelfSupervisionConfig(
        patch_reduction=PatchReduction.SEPARATE, visible_weight=visible_weight
    )


def patch(config, mask=MASK, values=ENTROPIES):
    return float(losses.patch_loss(jnp.float32(values), jnp.asarray(mask), config))


def test_local_crops_count_alike():
    found = losses.distillation_loss(jnp.float32(ENTROPIES))
    assert float(found) == pytest.approx(sum(ENTROPIES.flat) / 15, rel=1e-6)


def test_ibot_averages_masked_patches_of_an_image_then_images():
    expected = reference.masked_mean(ENTROPIES, MASK)
    assert patch(IBOT) == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx(ENTROPIES[MASK].mean(), rel=0.1)


def test_ibot_plus_plus_averages_all_patches():
    assert patch(ALL) == pytest.approx(sum(ENTROPIES.flat) / 15, rel=1e-6)


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0])
def test_separate_means_are_weighed(weight):
    masked, visible = (reference.masked_mean(ENTROPIES, m) for m in (MASK, ~MASK))
    expected = (masked + weight * visible) / (1 + weight)
    assert patch(separate(weight)) == pytest.approx(expected, rel=1e-6)


def test_a_visible_weight_of_0_is_ibot():
    assert patch(separate(0.0)) == patch(IBOT)


def test_with_every_patch_masked_both_losses_are_one():
    everything = np.ones_like(MASK)
    assert patch(ALL, everything) == pytest.approx(patch(IBOT, everything), rel=1e-6)


def test_separate_means_in_the_ratio_of_their_patches_are_the_mean_of_all():
    mask = np.arange(5) < [[3], [3], [3]]
    assert patch(separate(2 / 3), mask) == pytest.approx(patch(ALL, mask), rel=1e-6)


def test_without_a_masked_patch_the_loss_and_its_gradient_are_0():
    nothing = jnp.zeros_like(MASK)
    gradient = jax.grad(losses.patch_loss)(jnp.float32(ENTROPIES), nothing, IBOT)
    assert patch(IBOT, nothing) == 0
    assert not np.any(gradient)


@pytest.mark.parametrize("config", [IBOT, ALL, separate(0.5)])
def test_visible_patches_have_a_gradient_in_ibot_plus_plus_only(config):
    gradient = jax.grad(losses.patch_loss)(jnp.float32(ENTROPIES), MASK, config)
    assert np.all(gradient[MASK] > 0)
    assert np.all((gradient[~MASK] > 0) == (config is not IBOT))


@pytest.mark.parametrize("config", [IBOT, ALL, separate(1.0)])
def test_patches_at_chance_are_at_chance_in_every_reduction(config):
    mask = MASK | (np.arange(5) == 2)  # each image has both kinds
    assert patch(config, mask, np.full((3, 5), 7.0)) == pytest.approx(7, rel=1e-6)
