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
    k = jax.random.normal(keys[1], (b, s, n_kv_heads, d))
    v = jax.random.normal(keys[2], (b, s, n_kv_heads, d))
    seen = jax.random.bernoulli(keys[3], 0.6, (b, t, s)).at[..., 0].set(True)
    attend = jax.jit(functools.partial(layers.attend, scale=0.7, logit_cap=1.5))
    out = np.asarray(attend(q, [layers.Memory(*layers.as_memory(k, v), seen)]))
    expected = by_loops(q, k, v, seen)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    parts = [
        layers.Memory(*layers.as_memory(k[:, part], v[:, part]), seen[..., part])
        for part in (slice(0, 2), slice(2, 5))
    ]
    np.testing.assert_allclose(attend(q, parts), expected, atol=1e-5)


def test_rows_that_share_a_memory_read_as_if_each_had_its_own():
    q = jax.random.normal(jax.random.key(0), (6, 1, 4, 6))
    k, v = jax.random.normal(jax.random.key(1), (2, 2, 5, 2, 6))
    shared = layers.attend(q, [layers.Memory(*layers.as_memory(k, v))], scale=0.7)
    own = layers.as_memory(k.repeat(3, axis=0), v.repeat(3, axis=0))
    expected = layers.attend(q, [layers.Memory(*own)], scale=0.7)
    np.testing.assert_allclose(shared, expected, atol=1e-6)


def by_loops(*arrays: jax.Array) -> np.ndarray:
    q, k, v, seen = map(np.asarray, arrays)
    expected = np.zeros_like(q)
    n_groups = q.shape[2] // k.shape[2]
    for row, query, head in np.ndindex(q.shape[:3]):
        kv_head = head // n_groups
        logits = 0.7 * (k[row, :, kv_head] @ q[row, query, head])
        weights = np.exp(1.5 * np.tanh(logits / 1.5)) * seen[row, query]
        expected[row, query, head] = weights @ v[row, :, kv_head] / weights.sum()
    return expected


def test_another_activation_is_refused():
    with pytest.raises(ValueError, match="hidden_act='relu': expected"):
        layers.check_activation("relu")
