import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from trainer.config import ComputeConfig, HeadConfig
from trainer.models.layers import PLAIN, ParamMaker
from trainer.models.prototype_head import PrototypeHead, PrototypeHeads

RNG = np.random.default_rng(0)
CONFIG = HeadConfig(n_prototypes=7, hidden_dim=12, n_layers=3, bottleneck_dim=4)
TOKENS = RNG.normal(size=(2, 3, 6)).astype(np.float32)


def make(compute=PLAIN, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return PrototypeHead(config, 6, ParamMaker(0), compute)


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model))


def gelu(x):
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


@pytest.mark.parametrize("n_layers", [1, 3])
def test_the_head_equals_its_plain_reference(n_layers):
    head = make(n_layers=n_layers)
    params = jax.tree.map(
        lambda x: RNG.normal(size=x.shape).astype(np.float32), params_of(head)
    )
    x = TOKENS.astype(np.float64)
    for i in range(n_layers):
        layer = params[f"Dense_{i}"]
        x = (gelu(x) if i else x) @ layer["kernel"] + layer["bias"]
    expected = x / np.linalg.norm(x, axis=-1, keepdims=True)
    head = nnx.merge(nnx.graphdef(head), params)
    np.testing.assert_allclose(head(TOKENS), expected, atol=1e-5)
    kernel = params["prototypes"]["kernel"]
    columns = kernel / np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(head.prototypes(), columns, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vectors_and_prototypes_are_of_length_1(dtype):
    head = make(ComputeConfig(dtype=dtype))
    vectors, prototypes = head(TOKENS), head.prototypes()
    assert (vectors.dtype, prototypes.dtype) == (dtype, jnp.float32)
    assert (vectors.shape, prototypes.shape) == ((2, 3, 4), (4, 7))
    lengths = np.linalg.norm(np.float32(vectors), axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6 if dtype == "float32" else 4e-3)
    np.testing.assert_allclose(np.linalg.norm(prototypes, axis=0), 1, atol=1e-6)


def test_bfloat16_rounds_a_little():
    """The head of default sizes, so that rounding has something to add up over."""
    config = HeadConfig(n_prototypes=1)
    tokens = RNG.normal(size=(8, 32)).astype(np.float32)
    exact, rounded = (
        PrototypeHead(config, 32, ParamMaker(0), ComputeConfig(dtype=dtype))(tokens)
        for dtype in ("float32", "bfloat16")
    )
    cosines = (exact * rounded.astype(np.float32)).sum(axis=-1)
    assert 0.999 < cosines.min() < 0.9999999


def test_the_length_of_a_prototype_is_not_learned():
    def score(kernel):
        head = make()
        head.prototypes.kernel = nnx.Param(kernel)
        return (head.prototypes() * jnp.arange(28.0).reshape(4, 7)).sum()

    kernel = params_of(make())["prototypes"]["kernel"]
    gradient = jax.grad(score)(kernel)
    assert score(3 * kernel) == pytest.approx(float(score(kernel)), rel=1e-5)
    assert np.abs(gradient).max() > 1
    np.testing.assert_allclose((kernel * gradient).sum(axis=0), 0, atol=1e-4)


def test_matrices_start_as_dino_s_do():
    params = params_of(make(n_prototypes=500, hidden_dim=200))
    for name in ("Dense_1", "prototypes"):
        assert np.std(params[name]["kernel"]) == pytest.approx(0.02, rel=0.1)
    assert not any(np.any(params[f"Dense_{i}"]["bias"]) for i in range(3))


def test_cls_tokens_and_patches_have_heads_of_their_own_or_share_one():
    own, shared = (
        PrototypeHeads(
            dataclasses.replace(CONFIG, is_shared=is_shared),
            6,
            ParamMaker(0),
            PLAIN,
        )
        for is_shared in (False, True)
    )
    assert params_of(own).keys() == {"cls", "patches"}
    assert params_of(shared).keys() == {"shared"}
    assert shared.cls_head is shared.patch_head
    assert not np.allclose(own.cls_head(TOKENS), own.patch_head(TOKENS))
