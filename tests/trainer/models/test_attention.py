"""The kernels of attention against the plain one, interpreted on virtual devices.

Nothing runs on a GPU or TPU here: for those, programs are only lowered.
"""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import (
    AbstractDevice,
    AbstractMesh,
    Mesh,
    NamedSharding,
    PartitionSpec,
)

from tests.support.jaxprs import equations
from trainer.config import (
    AttentionKind,
    ComputeConfig,
    FeedForward,
    Remat,
    TransformerConfig,
)
from trainer.distributed.sharding import BATCH_AXES
from trainer.models import attention
from trainer.models.layers import ParamMaker
from trainer.models.transformer import Transformer

# Rows, tokens, heads, channels and whether some are padded. Rows of 51 or 64 tokens
# share a program, two heads of 64 channels do, and 270 queries are taken in two parts.
# Heads of 72 channels are those of So400m, and stay together.
CASES = {
    "local crops": (4, 51, 4, 64, False),
    "texts": (4, 64, 2, 64, True),
    "odd rows": (3, 13, 2, 8, True),
    "two parts": (1, 270, 2, 72, False),
}
CONFIG = TransformerConfig(
    width=16, n_layers=1, n_heads=2, mlp_dim=8, feed_forward=FeedForward.GELU
)
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2}


def inputs(case, dtype):
    b, t, n_heads, c, is_padded = CASES[case]
    rng = np.random.default_rng(0)
    shape = (4, b, t, n_heads, c)
    *heads, slopes = jnp.asarray(rng.normal(size=shape), dtype)
    if not is_padded:
        return heads, slopes, None
    lengths = rng.integers(1, t, (b, 1))
    lengths[0] = 1
    return heads, slopes, jnp.arange(t) < lengths


def plain(query, key, value, is_valid):
    """With all weights at once, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    logits = np.einsum("bqhc,bkhc->bhqk", query, key) / np.sqrt(query.shape[-1])
    if is_valid is not None:
        logits = np.where(is_valid[:, None, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhc->bqhc", weights, value), weights


def plain_gradients(heads, slopes, is_valid):
    query, key, value = (np.asarray(x, np.float64) for x in heads)
    slopes = np.asarray(slopes, np.float64)
    mixed, weights = plain(*heads, is_valid)
    of_weights = np.einsum("bqhc,bkhc->bhqk", slopes, value)
    mean = np.einsum("bqhc,bqhc->bhq", slopes, mixed)
    of_logits = weights * (of_weights - mean[..., None]) / np.sqrt(query.shape[-1])
    return (
        np.einsum("bhqk,bkhc->bqhc", of_logits, key),
        np.einsum("bhqk,bqhc->bkhc", of_logits, query),
        np.einsum("bhqk,bqhc->bkhc", weights, slopes),
    )


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_of_tpus_has_values_and_gradients_of_plain_attention(case, dtype):
    heads, slopes, is_valid = inputs(case, dtype)

    @jax.jit
    def run(heads, slopes):
        kernel = functools.partial(attention.pallas, is_interpreted=True)
        mixed, pull_back = jax.vjp(lambda *heads: kernel(*heads, is_valid), *heads)
        return mixed, pull_back(slopes)

    mixed, gradients = run(heads, slopes)
    expected = plain(*heads, is_valid)[0], *plain_gradients(heads, slopes, is_valid)
    for ours, theirs in zip((mixed, *gradients), expected, strict=True):
        assert ours.dtype == dtype
        scale = max(np.abs(theirs).max(), 1)
        np.testing.assert_allclose(
            np.float64(ours) / scale, theirs / scale, atol=TOLERANCES[dtype]
        )


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_attention_without_a_kernel_is_plain_attention(dtype):
    module, x, is_valid = example(dtype)
    heads = module.query(x), module.key(x), module.value(x)
    mixed, weights = plain(*heads, is_valid)
    expected = module.out(jnp.asarray(mixed, dtype))
    found = module(x, is_valid)
    assert found.dtype == dtype
    tolerance = TOLERANCES[dtype] * np.abs(expected).max()
    np.testing.assert_allclose(np.float32(found), expected, atol=tolerance)
    ours = module.weights(x, is_valid=is_valid)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, weights, atol=TOLERANCES[dtype])


def on_mesh():
    """Output and gradient by the kernel on four devices, and the number of gathers."""
    attention.kernel_of = lambda _: functools.partial(
        attention.pallas, is_interpreted=True
    )
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), BATCH_AXES)
    module, *inputs = example(jnp.bfloat16, n_rows=8)

    def run(x, is_valid):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            out, pull_back = jax.vjp(lambda x: module(x, is_valid), x)
            return out, *pull_back(out)

    rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    inputs = jax.device_put(inputs, rows)
    compiled = jax.jit(run).lower(*inputs).compile()
    found = [np.float32(x).tolist() for x in compiled(*inputs)]
    return found, compiled.as_text().count("all-gather")


def test_devices_run_the_kernel_on_their_own_rows():
    code = (
        "import json; from tests.trainer.models import test_attention as cases; "
        "print(json.dumps(cases.on_mesh()))"
    )
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found, n_gathers = json.loads(done.stdout.splitlines()[-1])
    assert n_gathers == 0
    module, x, is_valid = example(jnp.bfloat16, n_rows=8)
    out, pull_back = jax.vjp(lambda x: module(x, is_valid), x)
    for ours, theirs in zip(found, (out, *pull_back(out)), strict=True):
        tolerance = 1e-2 * np.abs(np.float32(theirs)).max()
        np.testing.assert_allclose(ours, np.float32(theirs), atol=tolerance)


def example(dtype, n_rows=2):
    x = np.random.default_rng(1).normal(size=(n_rows, 5, 16))
    is_valid = jnp.arange(5) < 1 + jnp.arange(n_rows)[:, None]
    return attention.Attention(CONFIG, ParamMaker(0)), jnp.asarray(x, dtype), is_valid


TPU = AbstractDevice("TPU v5p", 1, "tpu")
H100 = AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
OTHERS = AbstractDevice("cpu", None, "cpu"), AbstractDevice("MI300X", None, "gpu")


def on(device):
    mesh = AbstractMesh((1, 1), BATCH_AXES, abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def test_the_device_that_is_traced_for_chooses_the_kernel():
    found = functools.partial(attention.find_kernel, AttentionKind.AUTO)
    assert found(jnp.bfloat16) is None
    for device, kernel in ((TPU, attention.pallas), (H100, attention.cudnn)):
        with on(device):
            assert found(jnp.bfloat16) is kernel
            assert found(jnp.float32) is None
            assert attention.find_kernel(AttentionKind.PLAIN, jnp.bfloat16) is None
    for device in OTHERS:
        with on(device):
            assert found(jnp.bfloat16) is None


@pytest.fixture
def cudnn_versions(monkeypatch):
    """The version of cuDNN that JAX asks for while it traces."""

    class Versions:
        cudnn_get_version = staticmethod(lambda: 91100)

    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", Versions)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("platform", "device", "target"),
    [("tpu", TPU, "tpu_custom_call"), ("cuda", H100, "__cudnn$fmha")],
)
def test_kernels_and_their_gradients_are_lowered(
    cudnn_versions, case, platform, device, target
):
    heads, slopes, is_valid = inputs(case, jnp.bfloat16)

    def gradients(*heads):
        kernel = attention.find_kernel(AttentionKind.AUTO, heads[0].dtype)
        run = functools.partial(attention.by_device, kernel)
        mixed, pull_back = jax.vjp(lambda *heads: run(*heads, is_valid), *heads)
        return mixed, pull_back(slopes)

    with on(device):
        traced = jax.jit(gradients).trace(*heads)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    # One call for the values and one for the gradients.
    assert text.count(f"@{target}") == 2
    b, t, n_heads, _, _ = CASES[case]
    assert f"{b}x{n_heads}x{t}x{t}xf32" not in text


@pytest.mark.parametrize("device", [TPU, H100], ids=["tpu", "cuda"])
@pytest.mark.parametrize(
    ("remat", "n_calls"), [(Remat.DOTS, 3), (Remat.DOTS_AND_ATTENTION, 2)]
)
def test_what_a_kernel_returns_can_be_kept(cudnn_versions, device, remat, n_calls):
    """Otherwise the backward pass runs it again."""
    compute = ComputeConfig(remat=remat)
    graph, params = nnx.split(Transformer(CONFIG, ParamMaker(0), compute))
    _, x, is_valid = example(jnp.bfloat16)

    def loss(params):
        return nnx.merge(graph, params)(x, is_valid).astype(jnp.float32).sum()

    with on(device):
        jaxpr = jax.make_jaxpr(jax.grad(loss))(params)
    names = [equation.primitive.name for equation in equations(jaxpr)]
    kernels = "pallas_call", "dot_product_attention"
    assert sum(name.startswith(kernels) for name in names) == n_calls
