"""The DPT decoder: its layout, and its parts against plain loops and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from trainer.config import VisionConfig
from trainer.exchange import dpt_heads
from trainer.models import dpt
from trainer.models.layers import ParamMaker
from trainer.models.vit import VisionOutput

WIDTH, CHANNELS, GRID = 16, 6, (3, 4)
CONFIG = dpt.DptConfig(width=WIDTH, head=dpt.NORMALS, n_outputs=3, channels=CHANNELS)


@pytest.fixture(scope="module")
def decoder():
    """With biases and kernels that are all different from zero."""
    model = dpt.DptDecoder(CONFIG, ParamMaker(0))
    rng = np.random.default_rng(1)
    state = nnx.to_pure_dict(nnx.state(model))
    state = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(scale=0.2, size=x.shape), jnp.float32), state
    )
    nnx.update(model, state)
    return model


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(2)
    return [
        VisionOutput(
            jnp.asarray(rng.normal(size=(2, 2, WIDTH)), jnp.float32),
            jnp.asarray(rng.normal(size=(2, *GRID, WIDTH)), jnp.float32),
        )
        for _ in range(4)
    ]


def shapes(model):
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model)))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in leaves
    }


def test_parameters_have_the_paths_and_shapes_of_the_released_heads():
    c = CHANNELS
    expected = {"dpt/project/kernel": (3, 3, c, c), "dpt/project/bias": (c,)}
    blocks = "dpt/reassemble_blocks"
    for i, own in enumerate((2, 4, 8, 16)):
        expected[f"{blocks}/out_projection_{i}/kernel"] = (1, 1, WIDTH, own)
        expected[f"{blocks}/out_projection_{i}/bias"] = (own,)
        expected[f"{blocks}/readout_projects_{i}/kernel"] = (2 * WIDTH, WIDTH)
        expected[f"{blocks}/readout_projects_{i}/bias"] = (WIDTH,)
        expected[f"dpt/convs_{i}/kernel"] = (3, 3, own, c)
        fusion = f"dpt/fusion_blocks_{i}"
        expected[f"{fusion}/Conv_0/kernel"] = (1, 1, c, c)
        expected[f"{fusion}/Conv_0/bias"] = (c,)
        for unit in range(1 + (i > 0)):
            for conv in ("conv1", "conv2"):
                path = f"{fusion}/PreActResidualConvUnit_{unit}/{conv}/kernel"
                expected[path] = (3, 3, c, c)
    for i, own, size in ((0, 2, 4), (1, 4, 2), (3, 16, 3)):
        expected[f"{blocks}/resize_layers_{i}/kernel"] = (size, size, own, own)
        expected[f"{blocks}/resize_layers_{i}/bias"] = (own,)
    expected |= {"pixel_normals/kernel": (c, 3), "pixel_normals/bias": (3,)}
    assert shapes(dpt.DptDecoder(CONFIG, ParamMaker(None))) == expected


@pytest.mark.parametrize(
    ("n_layers", "expected"),
    [
        (12, (2, 5, 8, 11)),
        (24, (5, 11, 17, 23)),
        (27, (6, 13, 20, 26)),
        (40, (9, 19, 29, 39)),
    ],
)
def test_levels_are_the_blocks_of_the_released_heads(n_layers, expected):
    sizes = {"width": 8, "n_heads": 2, "mlp_dim": 8}
    assert dpt.levels(VisionConfig(**sizes, n_layers=n_layers)) == expected


def test_doubling_keeps_the_corners_and_goes_straight_between_them():
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype(np.float32)
    found = dpt.double(jnp.asarray(x))
    for channel in range(2):
        rows = [
            np.interp(np.linspace(0, 3, 8), range(4), r) for r in x[0, ..., channel]
        ]
        both = [np.interp(np.linspace(0, 2, 6), range(3), c) for c in np.array(rows).T]
        np.testing.assert_allclose(found[0, ..., channel], np.array(both).T, atol=1e-5)


def test_enlarging_gives_every_pixel_a_square_of_the_kernel_turned_round():
    make = ParamMaker(3)
    layer = dpt.Enlarge(2, 3, make)
    x = np.random.default_rng(0).normal(size=(1, 2, 2, 3)).astype(np.float32)
    found = layer(jnp.asarray(x))
    kernel = np.asarray(layer.kernel[...])
    for y, column in np.ndindex(4, 4):
        own = kernel[1 - y % 2, 1 - column % 2]
        expected = x[0, y // 2, column // 2] @ own
        np.testing.assert_allclose(found[0, y, column], expected, atol=1e-5)


def test_a_kernel_with_a_stride_equals_a_plain_loop():
    layer = dpt.Conv(3, 2, 4, ParamMaker(3), stride=2)
    x = np.random.default_rng(0).normal(size=(1, 5, 4, 2)).astype(np.float32)
    found = layer(jnp.asarray(x))
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)))
    assert found.shape == (1, 3, 2, 4)
    for y, column in np.ndindex(3, 2):
        window = padded[2 * y : 2 * y + 3, 2 * column : 2 * column + 3]
        expected = np.einsum("yxc,yxcd->d", window, layer.kernel[...])
        np.testing.assert_allclose(found[0, y, column], expected, atol=1e-5)


@pytest.mark.slow
def test_a_map_has_eight_cells_along_a_patch_and_reads_cls_1_alone(decoder, found):
    run = jax.jit(decoder)
    before = run(found)
    assert before.shape == (2, 32, 32, 3)  # the coarsest of 2 x 2 cells, 16 times

    def changed(token):
        cls = [x.cls.at[:, token].add(1) for x in found]
        return run(
            [VisionOutput(c, x.patches) for c, x in zip(cls, found, strict=True)]
        )

    np.testing.assert_array_equal(changed(1), before)
    assert not np.allclose(changed(0), before)


@pytest.mark.torch
@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_the_decoder_equals_pytorch(decoder, grid, tmp_path):
    """With the arrays of an exported head."""
    import torch
    from torch.nn import functional

    rng = np.random.default_rng(5)
    arrays = [
        (rng.normal(size=(2, 2, WIDTH)), rng.normal(size=(2, *grid, WIDTH)))
        for _ in range(4)
    ]
    found = decoder([VisionOutput(*map(jnp.float32, pair)) for pair in arrays])
    dpt_heads.write(tmp_path / "head.npz", nnx.to_pure_dict(nnx.state(decoder)))
    with np.load(tmp_path / "head.npz") as stored:
        arrays_by_key = {key: torch.from_numpy(stored[key]) for key in stored.files}

    def weight(path):
        return arrays_by_key[f"{path}.weight"]

    def bias(path):
        return arrays_by_key.get(f"{path}.bias")

    def conv(path, x, **options):
        return functional.conv2d(x, weight(path), bias(path), **options)

    def unit(path, x):
        y = conv(f"{path}.conv1", functional.relu(x), padding=1)
        return x + conv(f"{path}.conv2", functional.relu(y), padding=1)

    def enlarged(path, x, factor):
        kernel = weight(path).flip([2, 3])
        return functional.conv_transpose2d(x, kernel, bias(path), stride=factor)

    def level(i, cls, patches):
        path = "dpt.reassemble"
        readout = np.broadcast_to(cls[:, None, None, 0], patches.shape)
        x = torch.from_numpy(np.concatenate([patches, readout], -1)).float()
        project = f"{path}.readout_projects.{i}"
        x = functional.linear(x, weight(project), bias(project))
        x = functional.gelu(x, approximate="tanh").permute(0, 3, 1, 2)
        x = conv(f"{path}.out_projections.{i}", x)
        if i < 2:
            x = enlarged(f"{path}.resize_layers.{i}", x, 4 // (i + 1))
        elif i == 3:
            x = conv(f"{path}.resize_layers.3", x, stride=2, padding=1)
        return conv(f"dpt.convs.{i}", x, padding=1)

    maps = [level(i, *pair) for i, pair in enumerate(arrays)]
    x = torch.zeros(())
    for i in range(4):
        path = f"dpt.fusion_blocks.{i}"
        if i == 0:
            x = maps[3]
        else:
            residual = functional.interpolate(maps[3 - i], x.shape[2:], mode="bilinear")
            x = x + unit(f"{path}.residual_unit", residual)
        x = unit(f"{path}.main_unit", x)
        x = functional.interpolate(
            x, scale_factor=2, mode="bilinear", align_corners=True
        )
        x = conv(f"{path}.out_conv", x)
    x = conv("dpt.project", x, padding=1).permute(0, 2, 3, 1)
    expected = functional.linear(x, weight("head"), bias("head"))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)
