import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pipeline.models.siglip import PatchEmbedding, Siglip, unit_rows
from tests.support import tiny_checkpoints


@pytest.mark.parametrize(
    ("tower", "option", "value"),
    [
        ("text_config", "projection_size", 31),
        ("vision_config", "vision_use_head", False),
    ],
)
def test_towers_that_do_not_meet_are_refused(tower: str, option: str, value: object):
    config = tiny_checkpoints.siglip_config()
    setattr(getattr(config, tower), option, value)
    with pytest.raises(ValueError, match=f"{option}={str(value).lower()}: expected"):
        Siglip(config, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def model() -> Siglip:
    config = tiny_checkpoints.siglip_config()
    module = Siglip(config, rngs=nnx.Rngs(0))
    graph, _ = nnx.split(module)
    return nnx.merge(graph, tiny_checkpoints.randomized(module, 0))


def pixels(n: int) -> jax.Array:
    return tiny_checkpoints.random_images(n) / 127.5 - 1


def test_embeddings_have_the_shared_width(model: Siglip):
    ids = jnp.arange(3 * 18).reshape(3, 18)
    assert nnx.eval_shape(Siglip.embed_images, model, pixels(2)).shape == (2, 24)
    assert nnx.eval_shape(Siglip.embed_texts, model, ids).shape == (3, 24)


def test_patches_are_read_row_by_row_as_the_convolution_does():
    config = tiny_checkpoints.siglip_config().vision_config
    embed = PatchEmbedding(config, rngs=nnx.Rngs(0))
    embed.bias[...] = jnp.arange(config.hidden_size)
    images = pixels(2)
    out = embed(jnp.asarray(images))
    weight = np.asarray(embed.weight[...])  # [d, c, height, width]
    for row, column in ((0, 0), (0, 3), (4, 1)):
        patch = images[1, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        expected = np.einsum("ijc,dcij->d", patch, weight) + np.arange(24)
        np.testing.assert_allclose(out[1, row * 5 + column], expected, atol=1e-4)


def test_pixels_beyond_the_last_whole_patch_are_left_out():
    config = tiny_checkpoints.siglip_config().vision_config
    embed = PatchEmbedding(config, rngs=nnx.Rngs(0))
    wider = np.pad(pixels(1), ((0, 0), (0, 7), (0, 7), (0, 0)), constant_values=1)
    np.testing.assert_array_equal(embed(jnp.asarray(wider)), embed(pixels(1)))


def test_text_embedding_reads_the_last_token(model: Siglip):
    ids = np.full((2, 18), 7)
    ids[1, -1] = 8
    first, second = jax.jit(model.embed_texts)(ids)
    assert np.abs(first - second).max() > 1e-3


def test_logits_are_scaled_cosines_plus_a_bias(model: Siglip):
    images, texts = jnp.array([[3.0, 4.0]]), jnp.array([[10.0, 0.0], [0.0, -2.0]])
    model.logit_scale[...], model.logit_bias[...] = jnp.log(5.0)[None], jnp.ones(1)
    np.testing.assert_allclose(model.logits(images, texts), [[4.0, -3.0]], rtol=1e-5)


def test_bfloat16_embeddings_are_close_to_float32():
    config = tiny_checkpoints.siglip_config()
    images = pixels(3)
    exact, rounded = (
        jax.jit(Siglip(config, rngs=nnx.Rngs(0), dtype=dtype).embed_images)(images)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(unit_rows(exact) - unit_rows(rounded)).max() < 0.03
