"""Ways to compute the same blocks: kept or computed again, one by one or in a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from trainer.config import ComputeConfig, FeedForward, Remat, TransformerConfig
from trainer.models.layers import PLAIN, LayerNorm, ParamMaker
from trainer.models.transformer import Transformer

RNG = np.random.default_rng(0)
N_LAYERS = 2
X = RNG.normal(size=(2, 5, 8)).astype(np.float32)
IS_VALID = np.array([[True] * 5, [True, True, True, False, False]])


def make(compute):
    config = TransformerConfig(
        width=8,
        n_layers=N_LAYERS,
        n_heads=2,
        mlp_dim=12,
        feed_forward=FeedForward.GELU,
    )
    return Transformer(config, ParamMaker(0), compute)


PARAMS = jax.tree.map(
    lambda x: jnp.float32(RNG.normal(0, 0.3, x.shape)),
    nnx.to_pure_dict(nnx.state(make(PLAIN))),
)


def forward(compute, x=X):
    graph = nnx.graphdef(make(compute))
    return lambda params: nnx.merge(graph, params)(x, IS_VALID)


def output_and_gradients(compute):
    def loss(params):
        out = forward(compute)(params)
        return (out**2).mean(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(PARAMS)
    return out, gradients


@pytest.fixture(scope="module")
def plain():
    return output_and_gradients(PLAIN)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("remat", Remat)
def test_all_ways_give_the_same_numbers(plain, remat, scan_layers):
    found = output_and_gradients(ComputeConfig(remat=remat, scan_layers=scan_layers))
    assert jax.tree.structure(found) == jax.tree.structure(plain)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-6),
        found,
        plain,
    )
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain[1])) > 0.1


@pytest.mark.parametrize("scan_layers", [False, True])
def test_rematerialization_keeps_less_for_the_gradient(scan_layers):
    n_kept = [
        n_bytes_kept(ComputeConfig(remat=remat, scan_layers=scan_layers))
        for remat in (Remat.FULL, Remat.DOTS, Remat.NONE)
    ]
    assert n_kept == sorted(set(n_kept))


def n_bytes_kept(compute):
    """Of everything that the gradient is computed from, parameters included."""
    kept = jax.eval_shape(lambda p: jax.vjp(forward(compute), p)[1], PARAMS)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def test_a_scan_has_one_block_for_all_layers():
    n_plain, n_scanned = (
        str(jax.make_jaxpr(forward(compute))(PARAMS)).count("dot_general[")
        for compute in (PLAIN, ComputeConfig(scan_layers=True))
    )
    assert n_plain == N_LAYERS * n_scanned > 0


def test_a_scan_goes_through_the_layers_in_order():
    """The same layers the other way round give something else."""
    names = [f"encoderblock_{i}" for i in range(N_LAYERS)]
    turned = dict(zip(names, reversed([PARAMS[name] for name in names]), strict=True))
    run = jax.jit(forward(ComputeConfig(scan_layers=True)))
    assert np.abs(run(PARAMS) - run(turned)).max() > 0.01


@pytest.mark.parametrize("scan_layers", [False, True])
def test_blocks_compute_in_the_dtype_of_their_input(scan_layers):
    compute = ComputeConfig(scan_layers=scan_layers)
    exact, rounded = (
        jax.jit(forward(compute, X.astype(dtype)))(PARAMS)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert (exact.dtype, rounded.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(rounded.astype(np.float32), exact, atol=0.1)


def test_layer_norm_takes_its_statistics_in_float32():
    """In bfloat16, 1,000 and 1,001 are one number, but these inputs differ by 8."""
    x = jnp.array([[1000, 1008, 1016, 1024]], jnp.bfloat16)
    out = LayerNorm(4, ParamMaker(0))(x)
    expected = np.array([[-3, -1, 1, 3]]) / np.sqrt(5)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), expected, rtol=2**-8)
