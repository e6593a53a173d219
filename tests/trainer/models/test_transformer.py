"""Ways to compute the same blocks: kept or computed again, one by one or in a loop.

Stochastic depth drops branches of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from trainer.config import ComputeConfig, FeedForward, Remat, TransformerConfig
from trainer.models.layers import PLAIN, LayerNorm, ParamMaker
from trainer.models.transformer import Drop, Transformer

RNG = np.random.default_rng(0)
N_LAYERS = 2
X = RNG.normal(size=(2, 5, 8)).astype(np.float32)
IS_VALID = np.array([[True] * 5, [True, True, True, False, False]])


def make(compute, n_layers=N_LAYERS, drop_path=0.0):
    config = TransformerConfig(
        width=8,
        n_layers=n_layers,
        n_heads=2,
        mlp_dim=12,
        feed_forward=FeedForward.GELU,
        drop_path=drop_path,
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
        for remat in (Remat.FULL, Remat.DOTS, Remat.DOTS_AND_ATTENTION, Remat.NONE)
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


def dropping(compute=PLAIN, rate=0.5):
    return jax.jit(
        lambda params, keys, x: nnx.merge(
            nnx.graphdef(make(compute, drop_path=rate)), params
        )(x, None, keys)
    )


def row_keys(n_rows, seed=0):
    return jax.random.split(jax.random.key(seed), n_rows)


def test_stochastic_depth_follows_the_keys_of_the_rows_alone():
    x, keys = np.repeat(X[:1], 8, axis=0), row_keys(8)
    run = dropping()
    out = run(PARAMS, keys, x)
    np.testing.assert_allclose(run(PARAMS, keys[::-1], x), out[::-1], atol=1e-6)
    scanned = dropping(ComputeConfig(scan_layers=True, remat=Remat.FULL))
    np.testing.assert_allclose(scanned(PARAMS, keys, x), out, atol=1e-5)
    assert np.abs(run(PARAMS, row_keys(8, seed=1), x) - out).max() > 0.01
    assert len({row.tobytes() for row in np.asarray(out)}) > 1


def test_without_keys_or_a_rate_nothing_is_dropped():
    whole = dropping(rate=0.0)(PARAMS, None, X)
    np.testing.assert_array_equal(dropping()(PARAMS, None, X), whole)
    np.testing.assert_array_equal(dropping(rate=0.0)(PARAMS, row_keys(2), X), whole)


def test_stochastic_depth_drops_its_share_of_branches_and_keeps_the_mean():
    drop = Drop(row_keys(4000), jnp.int32(3), jnp.float32(0.2))
    branch = jnp.ones((4000, 1, 1))
    first, second = (np.asarray(drop(branch, number)).ravel() for number in (0, 1))
    for found in (first, second):
        assert set(np.unique(found)) == {0, np.float32(1.25)}
        assert (found == 0).mean() == pytest.approx(0.2, abs=0.02)
    assert ((first == 0) & (second == 0)).mean() == pytest.approx(0.04, abs=0.01)


def test_the_first_block_drops_nothing_and_the_last_one_most():
    rates = make(PLAIN, drop_path=0.4, n_layers=3)._drop_rates(is_on=True)
    assert [float(rate) for _, rate in rates] == pytest.approx([0, 0.2, 0.4])
