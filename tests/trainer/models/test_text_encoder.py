import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support import reference
from trainer.models import text_encoder
from trainer.models.layers import ParamMaker

RNG = np.random.default_rng(0)
IDS = np.array([[5, 9, 2, 0, 0, 0], [7, 1, 7, 3, 8, 4]], np.int32)


@pytest.fixture(scope="module")
def encoder(tiny):
    """The encoder with random parameters, and the parameters."""
    config = dataclasses.replace(tiny.model.text, n_layers=2)
    model = text_encoder.TextEncoder(config, ParamMaker(0))
    params = jax.tree.map(
        lambda x: jnp.float32(RNG.normal(0.0, 0.3, x.shape)),
        nnx.to_pure_dict(nnx.state(model)),
    )
    return jax.jit(nnx.merge(nnx.graphdef(model), params)), params


def test_the_encoder_equals_its_plain_reference(encoder):
    model, params = encoder
    for found, ids in zip(model(IDS), IDS, strict=True):
        np.testing.assert_allclose(found, reference.text(params, ids), atol=2e-4)


def test_a_text_does_not_depend_on_what_it_is_batched_with(encoder):
    model, _ = encoder
    alone = model(IDS[:1, :3])
    np.testing.assert_allclose(model(IDS)[:1], alone, atol=1e-5)


def test_a_text_without_tokens_gives_zeros(encoder):
    model, _ = encoder
    assert not np.asarray(model(np.zeros((1, 6), np.int32))).any()


def test_positions_are_sines_then_cosines():
    positions = text_encoder.sinusoid_positions(3, 4)
    expected = [np.sin(2), np.sin(2e-4), np.cos(2), np.cos(2e-4)]
    np.testing.assert_allclose(positions[2], expected, rtol=1e-6)


def test_embeddings_start_with_unit_variance(tiny):
    model = text_encoder.TextEncoder(tiny.model.text, ParamMaker(0))
    ids = np.arange(60, dtype=np.int32)[None]
    assert float(model.token_emb(ids).std()) == pytest.approx(1, abs=0.1)
