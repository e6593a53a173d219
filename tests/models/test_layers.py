import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.models import layers


def test_layer_norm_of_a_worked_row():
    norm = layers.LayerNorm(2, eps=0.0)
    norm.weight[...] = jnp.array([2.0, 2.0])
    norm.bias[...] = jnp.array([1.0, -1.0])
    np.testing.assert_allclose(norm(jnp.array([3.0, 5.0])), [-1.0, 1.0], rtol=1e-6)


def test_rms_norm_weight_counts_from_one():
    norm = layers.RMSNorm(2, eps=0.0)
    x = jnp.array([3.0, 4.0])
    root_mean_square = np.sqrt(12.5)
    np.testing.assert_allclose(norm(x), x / root_mean_square, rtol=1e-6)
    norm.weight[...] = jnp.array([1.0, 0.0])
    np.testing.assert_allclose(norm(x), [6 / root_mean_square, 4 / root_mean_square])


def test_norms_compute_in_float32_and_return_the_input_dtype():
    # The mean of squares of 300 overflows float16's range.
    x = jnp.full(8, 300.0, jnp.float16)
    out = layers.RMSNorm(8, eps=1e-6)(x)
    assert out.dtype == jnp.float16
    np.testing.assert_allclose(out, np.ones(8), rtol=1e-3)


def test_attention_equals_plain_loops_with_grouped_heads_mask_and_cap():
    b, t, s, n_heads, n_kv_heads, d = 2, 3, 5, 4, 2, 6
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (b, t, n_heads, d))
    k = jax.random.normal(keys[1], (b, n_kv_heads, s, d))
    v = jax.random.normal(keys[2], (b, n_kv_heads, s, d))
    seen = jax.random.bernoulli(keys[3], 0.6, (b, t, s)).at[..., 0].set(True)
    attend = jax.jit(functools.partial(layers.attend, scale=0.7, logit_cap=1.5))
    out = np.asarray(attend(q, k, v, is_visible=seen))
    q, k, v, seen = map(np.asarray, (q, k, v, seen))
    for row, query, head in np.ndindex(b, t, n_heads):
        kv_head = head // (n_heads // n_kv_heads)
        logits = 0.7 * (k[row, kv_head] @ q[row, query, head])
        weights = np.exp(1.5 * np.tanh(logits / 1.5)) * seen[row, query]
        expected = weights @ v[row, kv_head] / weights.sum()
        np.testing.assert_allclose(out[row, query, head], expected, atol=1e-5)


def test_another_activation_is_refused():
    with pytest.raises(ValueError, match="hidden_act='relu': expected"):
        layers.check_activation("relu")
