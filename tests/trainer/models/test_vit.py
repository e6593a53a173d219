import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support import reference
from trainer.config import FeedForward
from trainer.models import vit
from trainer.models.layers import ParamMaker, lecun_normal

RNG = np.random.default_rng(0)
IMAGE = RNG.random((2, 28, 28, 3), np.float32)


def make(config, **changes):
    config = dataclasses.replace(config, **changes)
    return vit.VisionTransformer(config, ParamMaker(0))


def scrambled(model):
    """All parameters random, so that none hides behind a start of zeros or ones."""
    params = nnx.to_pure_dict(nnx.state(model))
    leaves, treedef = jax.tree.flatten(params)
    leaves = [RNG.normal(0.0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(treedef, leaves)


@pytest.mark.parametrize("feed_forward", [FeedForward.GELU, FeedForward.SWIGLU])
def test_the_encoder_equals_its_plain_reference(tiny, feed_forward):
    model = make(tiny.model.vision, feed_forward=feed_forward, n_layers=2)
    params = scrambled(model)
    graph = nnx.graphdef(model)
    out = jax.jit(lambda params: nnx.merge(graph, params)(IMAGE))(params)
    for i, image in enumerate(IMAGE):
        expected = reference.vision(params, image, feed_forward)
        np.testing.assert_allclose(out.cls[i], expected[:2], atol=2e-4)
        found = out.patches[i].reshape(4, -1)
        np.testing.assert_allclose(found, expected[2:], atol=2e-4)


@pytest.mark.parametrize("feed_forward", [FeedForward.GELU, FeedForward.SWIGLU])
def test_patches_by_values_equal_the_plain_reference(tiny, feed_forward):
    model = make(tiny.model.vision, feed_forward=feed_forward, n_layers=2)
    params = scrambled(model)
    graph = nnx.graphdef(model)
    run = jax.jit(lambda params: nnx.merge(graph, params).value_patches(IMAGE))
    options = {"feed_forward": feed_forward, "is_by_values": True}
    for patches, image in zip(run(params), IMAGE, strict=True):
        expected = reference.vision(params, image, **options)
        np.testing.assert_allclose(patches.reshape(4, -1), expected[2:], atol=2e-4)


def test_blocks_in_between_give_what_an_encoder_without_the_rest_gives(tiny):
    model = make(tiny.model.vision, n_layers=3)
    params = scrambled(model)
    graph = nnx.graphdef(model)
    run = jax.jit(lambda params: nnx.merge(graph, params).intermediate(IMAGE, (0, 2)))
    first, last = run(params)
    for layers, found in ((3, last), (1, first)):
        blocks = params["encoder"]["transformer"]
        kept = {f"encoderblock_{i}": blocks[f"encoderblock_{i}"] for i in range(layers)}
        shorter = {"encoder": {**params["encoder"], "transformer": kept}}
        expected = reference.vision(shorter, IMAGE[0], "gelu")
        np.testing.assert_allclose(found.cls[0], expected[:2], atol=2e-4)
        patches = found.patches[0].reshape(4, -1)
        np.testing.assert_allclose(patches, expected[2:], atol=2e-4)


def test_registers_are_tokens_whose_output_is_dropped(tiny):
    model = make(tiny.model.vision, n_layers=2, n_registers=3)
    params = scrambled(model)
    graph = nnx.graphdef(model)
    run = jax.jit(lambda params: nnx.merge(graph, params)(IMAGE))
    out = run(params)
    attention = jax.jit(lambda params: nnx.merge(graph, params).cls_attention(IMAGE))(
        params
    )
    tokens = params["encoder"]["ToTokenSequence_0"]
    prefix = np.concatenate([tokens["cls"], tokens.pop("registers")], axis=1)
    expected = reference.vision(
        {
            "encoder": params["encoder"]
            | {"ToTokenSequence_0": tokens | {"cls": prefix}}
        },
        IMAGE[0],
        "gelu",
    )
    np.testing.assert_allclose(out.cls[0], expected[:2], atol=2e-4)
    np.testing.assert_allclose(out.patches[0].reshape(4, -1), expected[5:], atol=2e-4)
    assert attention.shape[-1] == 2 + 4
    assert (attention.sum(axis=-1) < 1).all()


def test_cls_tokens_start_at_zero_and_give_the_same(tiny):
    cls = jax.jit(make(tiny.model.vision))(IMAGE).cls
    np.testing.assert_array_equal(cls[:, 0], cls[:, 1])


def test_cls_tokens_may_start_from_a_normal_distribution(tiny):
    tokens = make(tiny.model.vision, width=4096, cls_init_stddev=0.5)
    cls = np.asarray(tokens.encoder.ToTokenSequence_0.cls[...])
    assert cls.std() == pytest.approx(0.5, rel=0.05)
    assert abs(np.corrcoef(cls[0])[0, 1]) < 0.1


def test_the_patch_embedding_starts_lecun_normal():
    """Moments of a normal distribution cut off at 2 sigma, and variance 1 / fan-in."""
    fan_in = 14 * 14 * 3
    kernel = lecun_normal(fan_in)(np.random.default_rng(0), (fan_in, 1000))
    values = kernel * fan_in**0.5
    assert values.mean() == pytest.approx(0, abs=0.005)
    assert values.std() == pytest.approx(1, rel=0.005)
    assert np.abs(values).max() == pytest.approx(2 / 0.8796, rel=1e-3)
    assert (values**4).mean() == pytest.approx(2.3655, rel=0.01)  # 3 if not cut off
    other = jax.nn.initializers.lecun_normal()(jax.random.key(0), (fan_in, 1000))
    assert (other**4).mean() * fan_in**2 == pytest.approx(2.3655, rel=0.01)


def test_the_patch_embedding_starts_by_its_inputs(tiny):
    kernels = [
        make(
            tiny.model.vision, width=width, n_heads=1
        ).encoder.ToTokenSequence_0.embedding.kernel[...]
        for width in (16, 512)
    ]
    for kernel in kernels:
        assert kernel.std() * (14 * 14 * 3) ** 0.5 == pytest.approx(1, rel=0.05)


def test_patches_come_in_rows_from_the_top():
    image = np.arange(4 * 6, dtype=np.float32).reshape(1, 4, 6, 1)
    patches = vit.to_patches(jnp.array(image), 2)
    assert patches.shape == (1, 2, 3, 2, 2, 1)
    assert patches[0, 1, 2, :, :, 0].tolist() == [[16, 17], [22, 23]]


def test_an_image_is_padded_around_to_whole_patches():
    padded = vit.pad_to_multiple(jnp.ones((1, 3, 5, 1)), 4)
    assert padded[0, :, :, 0].tolist() == [
        [0, 1, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_the_position_grid_follows_the_size_of_the_input():
    ramp = jnp.broadcast_to(jnp.arange(4.0)[None, :, None, None], (1, 4, 4, 1))
    larger = vit.resize_grid(ramp, 8, 4)[0, :, 0, 0]
    np.testing.assert_allclose(larger[1:-1], 0.25 + 0.5 * np.arange(6), atol=1e-6)
    smaller = vit.resize_grid(ramp, 2, 4)[0, :, 0, 0]
    assert smaller[0] == pytest.approx(3 - smaller[1])
    assert vit.resize_grid(ramp, 4, 4) is ramp


def test_a_larger_image_gives_a_larger_grid(tiny):
    out = jax.eval_shape(make(tiny.model.vision), jnp.zeros((1, 42, 70, 3)))
    assert (out.cls.shape, out.patches.shape) == ((1, 2, 16), (1, 3, 5, 16))
