"""Sizes and paths of the released checkpoints."""

import math

import jax
import numpy as np
import pytest

from trainer import config
from trainer.models import two_tower


def shapes(size, grid=(16, 16)):
    """Tower to {path joined with "/": shape}."""
    params = two_tower.abstract_params(config.tips_model(size, grid))
    return {tower: dict(paths(params[tower])) for tower in ("vision", "text")}


def paths(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield "/".join(key.key for key in path), leaf.shape


def count(tower):
    return sum(map(math.prod, tower.values()))


@pytest.mark.parametrize(
    ("size", "n_vision", "n_text", "n_vision_arrays", "n_text_arrays"),
    [
        ("S/14", 21_619_584, 33_582_336, 198, 195),
        ("B/14", 85_706_496, 109_632_000, 198, 195),
        ("L/14", 303_178_752, 183_924_736, 390, 195),
        ("So400m/14", 412_444_656, 448_332_912, 438, 435),
        ("g/14", 1_134_646_784, 389_133_312, 726, 195),
    ],
)
def test_released_sizes_have_their_parameters(
    size, n_vision, n_text, n_vision_arrays, n_text_arrays
):
    found = shapes(size)
    assert (count(found["vision"]), count(found["text"])) == (n_vision, n_text)
    n_arrays = (len(found["vision"]), len(found["text"]))
    assert n_arrays == (n_vision_arrays, n_text_arrays)


def test_the_position_grid_of_tipsv2_has_1024_places():
    assert count(shapes("B/14", (32, 32))["vision"]) == 86_296_320


def test_b14_has_the_keys_and_shapes_of_the_released_files():
    b14 = shapes("B/14", (32, 32))
    assert b14["vision"] == {
        "encoder/ToTokenSequence_0/embedding/kernel": (14, 14, 3, 768),
        "encoder/ToTokenSequence_0/embedding/bias": (768,),
        "encoder/ToTokenSequence_0/posembed_input": (1, 32, 32, 768),
        "encoder/ToTokenSequence_0/cls": (1, 2, 768),
        "encoder/encoder_norm/scale": (768,),
        "encoder/encoder_norm/bias": (768,),
        **released_blocks("encoder/transformer/"),
    }
    assert b14["text"] == {
        "token_emb/emb_var": (32_000, 768),
        "text_encoder_norm/scale": (768,),
        "text_encoder_norm/bias": (768,),
        **released_blocks("transformer/"),
    }


def released_blocks(prefix):
    found = {}
    for i in range(12):
        block = f"{prefix}encoderblock_{i}"
        for norm in ("LayerNorm_0", "LayerNorm_1"):
            found[f"{block}/{norm}/scale"] = found[f"{block}/{norm}/bias"] = (768,)
        attention = f"{block}/MultiHeadDotProductAttention_0"
        for part in ("query", "key", "value"):
            found[f"{attention}/{part}/kernel"] = (768, 12, 64)
            found[f"{attention}/{part}/bias"] = (12, 64)
        found[f"{attention}/out/kernel"] = (12, 64, 768)
        found[f"{attention}/out/bias"] = (768,)
        found[f"{block}/MlpBlock_0/Dense_0/kernel"] = (768, 3072)
        found[f"{block}/MlpBlock_0/Dense_0/bias"] = (3072,)
        found[f"{block}/MlpBlock_0/Dense_1/kernel"] = (3072, 768)
        found[f"{block}/MlpBlock_0/Dense_1/bias"] = (768,)
    return found


def test_g14_gates_a_hidden_layer_of_two_thirds():
    vision = shapes("g/14")["vision"]
    ffn = "encoder/transformer/encoderblock_39/FFNSwiGluFused_0"
    assert [vision[f"{ffn}/Dense_{i}/kernel"] for i in range(3)] == [
        (1536, 4096),
        (1536, 4096),
        (4096, 1536),
    ]


def test_beside_the_towers_there_are_two_temperatures_and_nothing_else(tiny):
    params = two_tower.init_params(tiny.model, 0)
    extra = {name: float(np.exp(params[name])) for name in params.keys() - TOWERS}
    assert extra == pytest.approx(
        {
            "log_temperature_alt_text": 0.07,
            "log_temperature_synthetic_caption": 0.07,
        }
    )


TOWERS = {"vision", "text"}


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
