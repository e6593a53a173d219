"""Sizes and paths of the released checkpoints, and the model as a whole."""

import dataclasses
import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from trainer import config
from trainer.models import two_tower

TOWERS = ("vision", "text")


def shapes(size, grid=(16, 16)):
    """Tower to {path joined with "/": shape}."""
    params = two_tower.abstract_params(config.tips_model(size, grid))
    return {tower: dict(paths(params[tower])) for tower in TOWERS}


def paths(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield "/".join(key.key for key in path), leaf.shape


def count(tower):
    return sum(map(math.prod, tower.values()))


@pytest.mark.parametrize(
    (
        "size",
        "n_vision",
        "n_vision_of_v2",
        "n_text",
        "n_vision_arrays",
        "n_text_arrays",
    ),
    [
        ("S/14", 21_619_584, 21_914_496, 33_582_336, 198, 195),
        ("B/14", 85_706_496, 86_296_320, 109_632_000, 198, 195),
        ("L/14", 303_178_752, 303_965_184, 183_924_736, 390, 195),
        ("So400m/14", 412_444_656, 413_329_392, 448_332_912, 438, 435),
        ("g/14", 1_134_646_784, 1_135_826_432, 389_133_312, 726, 195),
    ],
)
def test_released_sizes_have_their_parameters(
    size, n_vision, n_vision_of_v2, n_text, n_vision_arrays, n_text_arrays
):
    found, found_v2 = shapes(size), shapes(size, (32, 32))
    assert (count(found["vision"]), count(found["text"])) == (n_vision, n_text)
    assert count(found_v2["vision"]) == n_vision_of_v2
    assert found_v2["text"] == found["text"]
    n_arrays = (len(found["vision"]), len(found["text"]))
    assert n_arrays == (n_vision_arrays, n_text_arrays)


@pytest.mark.parametrize(
    ("size", "width", "n_heads", "n_vision_layers", "n_text_layers", "mlp_dim"),
    [
        ("S/14", 384, 6, 12, 12, 1536),
        ("B/14", 768, 12, 12, 12, 3072),
        ("L/14", 1024, 16, 24, 12, 4096),
        ("So400m/14", 1152, 16, 27, 27, 4304),
        ("g/14", 1536, 24, 40, 12, 6144),
    ],
)
def test_the_keys_and_shapes_are_those_of_the_released_files(
    size, width, n_heads, n_vision_layers, n_text_layers, mlp_dim
):
    found = shapes(size, (32, 32))
    relu = {"MlpBlock_0": [(width, mlp_dim), (mlp_dim, width)]}
    swiglu = {"FFNSwiGluFused_0": [(1536, 4096), (1536, 4096), (4096, 1536)]}
    vision_mlp = swiglu if size == "g/14" else relu
    assert found["vision"] == {
        "encoder/ToTokenSequence_0/embedding/kernel": (14, 14, 3, width),
        "encoder/ToTokenSequence_0/embedding/bias": (width,),
        "encoder/ToTokenSequence_0/posembed_input": (1, 32, 32, width),
        "encoder/ToTokenSequence_0/cls": (1, 2, width),
        "encoder/encoder_norm/scale": (width,),
        "encoder/encoder_norm/bias": (width,),
        **released_blocks(
            "encoder/transformer/", n_vision_layers, width, n_heads, vision_mlp
        ),
    }
    assert found["text"] == {
        "token_emb/emb_var": (32_000, width),
        "text_encoder_norm/scale": (width,),
        "text_encoder_norm/bias": (width,),
        **released_blocks("transformer/", n_text_layers, width, n_heads, relu),
    }


def released_blocks(prefix, n_layers, width, n_heads, mlp):
    heads = (n_heads, width // n_heads)
    found = {}
    for i in range(n_layers):
        block = f"{prefix}encoderblock_{i}"
        for norm in ("LayerNorm_0", "LayerNorm_1"):
            found[f"{block}/{norm}/scale"] = found[f"{block}/{norm}/bias"] = (width,)
        attention = f"{block}/MultiHeadDotProductAttention_0"
        for part in ("query", "key", "value"):
            found[f"{attention}/{part}/kernel"] = (width, *heads)
            found[f"{attention}/{part}/bias"] = heads
        found[f"{attention}/out/kernel"] = (*heads, width)
        found[f"{attention}/out/bias"] = (width,)
        for name, kernels in mlp.items():
            for number, kernel in enumerate(kernels):
                found[f"{block}/{name}/Dense_{number}/kernel"] = kernel
                found[f"{block}/{name}/Dense_{number}/bias"] = kernel[1:]
    return found


def test_beside_the_towers_there_are_two_temperatures_and_nothing_else(tiny):
    params = two_tower.init_params(tiny.model, 0)
    extra = {name: float(np.exp(params[name])) for name in params.keys() - {*TOWERS}}
    assert extra == pytest.approx(
        {
            "log_temperature_alt_text": 0.07,
            "log_temperature_synthetic_caption": 0.07,
        }
    )


def test_the_head_and_the_mask_token_join_and_change_nothing_else(small):
    alone = two_tower.init_params(small, 0)
    joined = two_tower.init_params(small, 0, has_head=True)
    head, token = joined.pop("head"), joined.pop("mask_token")
    assert (head.keys(), token.shape) == ({"shared"}, (16,))
    jax.tree.map(np.testing.assert_array_equal, joined, alone)


@pytest.mark.parametrize(("is_shared", "saving"), [(False, 0.372), (True, 0.427)])
def test_a_teacher_that_is_only_a_head_saves_parameters(is_shared, saving):
    """TIPSv2 reports 42 % on this size: with the default sizes, a shared head."""
    model = config.tips_model("B/14")
    head = dataclasses.replace(model.head, is_shared=is_shared)
    model = dataclasses.replace(model, head=head)
    params = two_tower.abstract_params(model, has_head=True)
    vision, head = n_bytes(params["vision"]), n_bytes(params["head"])
    student = vision + head
    assert 1 - (student + head) / (student + student) == pytest.approx(saving, abs=5e-4)


def n_bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def small(tiny):
    """The tiny model with a tiny head."""
    head = config.HeadConfig(
        n_prototypes=8, hidden_dim=12, n_layers=2, bottleneck_dim=4
    )
    return dataclasses.replace(tiny.model, head=head)


RNG = np.random.default_rng(0)
IMAGE = RNG.integers(1, 256, (2, 28, 28, 3), np.uint8)
IDS = np.array([[5, 9, 2, 0], [7, 1, 7, 3]], np.int32)
MASK = np.array([[[True, False], [False, True]], [[False, False], [True, False]]])
IS_HIDDEN = MASK.repeat(14, axis=1).repeat(14, axis=2)[..., None]  # pixels


@pytest.fixture(scope="module")
def params(small):
    """Random, so that nothing hides behind a start of zeros or ones."""
    return jax.tree.map(
        lambda x: jnp.float32(RNG.normal(0, 0.2, x.shape)),
        two_tower.abstract_params(small, has_head=True),
    )


@pytest.fixture(scope="module")
def encode_image(small):
    graph = two_tower.graph(small, has_head=True)
    return jax.jit(
        lambda params, image, mask=None: nnx.merge(graph, params).encode_image(
            image, mask
        )
    )


def test_what_is_behind_the_mask_is_not_seen(params, encode_image):
    seen = encode_image(params, IMAGE, MASK)
    hidden = encode_image(params, np.where(IS_HIDDEN, 255 - IMAGE, IMAGE), MASK)
    other = encode_image(params, np.where(IS_HIDDEN, IMAGE, 255 - IMAGE), MASK)
    for ours, same, different in zip(seen, hidden, other, strict=True):
        np.testing.assert_array_equal(ours, same)
        assert np.abs(ours - different).max() > 1e-2


def test_the_mask_token_stands_for_a_patch_before_its_position(params, encode_image):
    """The bias of the embedding is what a black patch is embedded as."""
    bias = params["vision"]["encoder"]["ToTokenSequence_0"]["embedding"]["bias"]
    masked = encode_image(params | {"mask_token": bias}, IMAGE, MASK)
    black = encode_image(params, np.where(IS_HIDDEN, 0, IMAGE).astype(np.uint8))
    for ours, theirs in zip(masked, black, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_bfloat16_is_near_float32_and_encoders_give_float32(small, params):
    exact, rounded = (
        jax.jit(all_outputs(small, config.ComputeConfig(dtype=dtype)))(params)
        for dtype in ("float32", "bfloat16")
    )
    assert [x.dtype for x in rounded] == ["float32"] * 3 + ["bfloat16"] * 2
    for ours, theirs in zip(exact, rounded, strict=True):
        assert ours.dtype == jnp.float32
        assert 1e-5 < np.abs(ours - theirs).max() < 0.05 * np.abs(ours).max()


def test_bfloat16_is_the_type_of_all_matrix_products(small, params):
    run = all_outputs(small, config.ComputeConfig(dtype="bfloat16"))
    operands = [
        variable.aval.dtype
        for equation in equations(jax.make_jaxpr(run)(params).jaxpr)
        if equation.primitive.name == "dot_general"
        for variable in equation.invars
    ]
    assert set(operands) == {jnp.dtype(jnp.bfloat16)}


def all_outputs(model_config, compute):
    """Of both towers and both heads, as a function of the parameters."""
    graph = two_tower.graph(model_config, has_head=True, compute=compute)

    def run(params):
        model = nnx.merge(graph, params)
        cls, patches = model.encode_image(IMAGE, MASK)
        heads = model.head.cls_head(cls), model.head.patch_head(patches)
        return cls, patches, model.encode_text(IDS), *heads

    return run


def equations(jaxpr):
    """Those of functions inside included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_positions_are_resized_and_nothing_else(params):
    before = jax.tree.map(np.asarray, params)
    resized = two_tower.resize_positions(params, (4, 4))
    jax.tree.map(np.testing.assert_array_equal, params, before)
    key = ("vision", "encoder", "ToTokenSequence_0", "posembed_input")
    positions, expected = leaf(resized, key), leaf(before, key)
    corners = np.ix_([0], [0, -1], [0, -1], range(16))
    assert positions.shape == (1, 4, 4, 16)
    np.testing.assert_allclose(positions[corners], expected, atol=1e-6)
    middle = positions[0, 1:3, 1:3].mean(axis=(0, 1))
    np.testing.assert_allclose(middle, expected.mean(axis=(0, 1, 2)), atol=1e-6)
    leaf(resized, key[:-1])["posembed_input"] = expected
    jax.tree.map(np.testing.assert_array_equal, resized, before)


def test_resized_parameters_are_those_of_the_model_with_the_larger_grid(small):
    larger = dataclasses.replace(small.vision, position_grid=(4, 6))
    expected = two_tower.abstract_params(dataclasses.replace(small, vision=larger))
    params = two_tower.init_params(small, 0)
    resized = two_tower.resize_positions(params, (4, 6))
    assert dict(paths(resized)) == dict(paths(expected))


def leaf(tree, keys):
    return functools.reduce(operator.getitem, keys, tree)


def test_shapes_without_arrays_are_those_of_the_arrays(tiny):
    arrays = two_tower.init_params(tiny.model, 0)
    assert dict(paths(arrays)) == dict(paths(two_tower.abstract_params(tiny.model)))


def test_the_start_follows_the_seed(tiny):
    one, same, other = (two_tower.init_params(tiny.model, seed) for seed in (0, 0, 1))
    assert dict(paths_and_sums(one)) == dict(paths_and_sums(same))
    assert dict(paths_and_sums(one)) != dict(paths_and_sums(other))


def test_no_two_matrices_start_alike(tiny):
    sums = [
        value
        for path, value in paths_and_sums(two_tower.init_params(tiny.model, 0))
        if path.endswith("kernel")
    ]
    assert len(set(sums)) == len(sums)


def paths_and_sums(params):
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        yield "/".join(key.key for key in path), float(leaf.sum())
