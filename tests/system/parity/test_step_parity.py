"""The benchmark's PyTorch step computes what the trainer's does."""

import jax.numpy as jnp
import numpy as np
import pytest

from trainer.config import SelfSupervisionConfig, VisionConfig
from trainer.models.layers import ParamMaker
from trainer.models.transformer import EncoderBlock
from trainer.step import losses, prototype_loss

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
train_torch = pytest.importorskip("benchmarks.train_torch")

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def unit(*shape):
    rows = normal(*shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize("n_targets", [8, 1])
def test_cross_entropy_over_prototypes_is_the_same(n_targets):
    ssl = SelfSupervisionConfig()
    student, teacher = (
        (unit(3, 8, 6), unit(20, 6)),
        (unit(3, n_targets, 6), unit(20, 6)),
    )
    center = 0.1 * normal(20)
    ours, theirs = ([torch.tensor(x) for x in pair] for pair in (student, teacher))
    found = train_torch.cross_entropy(ours, theirs, torch.tensor(center), ssl)
    tau = ssl.teacher_temperature
    match = prototype_loss.cross_entropy(
        prototype_loss.Scores(student[0], student[1].T, ssl.student_temperature),
        prototype_loss.Scores(teacher[0], teacher[1].T, tau),
        prototype_loss.center_bias(jnp.array(center), tau),
        n_prototypes_per_chunk=6,
    )
    assert float(found) == pytest.approx(float(match.cross_entropy.mean()), rel=1e-5)


def test_info_nce_is_the_same():
    image, text = normal(7, 6), normal(7, 6)
    found = train_torch.info_nce(*map(torch.tensor, (image, text)), torch.tensor(-2.0))
    expected = losses.info_nce(jnp.array(image), jnp.array(text), jnp.exp(-2.0))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_a_block_is_the_same():
    sizes = VisionConfig(width=16, n_layers=1, n_heads=2, mlp_dim=24)
    ours, theirs = EncoderBlock(sizes, ParamMaker(0)), train_torch.Block(sizes)
    attention, mlp = ours.MultiHeadDotProductAttention_0, ours.MlpBlock_0
    qkv = [attention.query, attention.key, attention.value]
    kernels = [
        (theirs.qkv, [layer.kernel[...].reshape(16, 16) for layer in qkv]),
        (theirs.out, [attention.out.kernel[...].reshape(16, 16)]),
        (theirs.mlp[0], [mlp.Dense_0.kernel[...]]),
        (theirs.mlp[2], [mlp.Dense_1.kernel[...]]),
    ]
    x = normal(2, 5, 16)
    with torch.no_grad():
        for layer, parts in kernels:
            layer.weight.copy_(torch.tensor(np.concatenate(parts, axis=1).T))
            layer.bias.zero_()
        found = theirs(torch.tensor(x)).numpy()
    np.testing.assert_allclose(found, ours(jnp.array(x), None), atol=1e-5)
