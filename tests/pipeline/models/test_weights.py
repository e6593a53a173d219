import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from transformers import PaliGemmaConfig, SiglipConfig

from pipeline.models.paligemma import PaliGemma
from pipeline.models.weights import (
    has_own_head,
    load_config,
    load_module,
    parameter_name,
    save_params,
)
from tests.support import tiny_checkpoints

Tensors = dict[str, np.ndarray]


def build(rngs: nnx.Rngs) -> PaliGemma:
    return PaliGemma(tiny_checkpoints.paligemma_config("gemma"), rngs=rngs)


@pytest.fixture(scope="module")
def params() -> nnx.State:
    return tiny_checkpoints.randomized(build(nnx.Rngs(0)), 0)


@pytest.fixture(scope="module")
def tensors(params: nnx.State, tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    folder = tmp_path_factory.mktemp("weights")
    save_params(params, folder, np.float32)
    return safetensors.numpy.load_file(folder / "model.safetensors")


def loaded(folder: Path, dtype: str = "float32") -> nnx.State:
    return load_module(build, folder, dtype)[1]


def assert_equal(first: nnx.State, second: nnx.State) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


def write(tensors: Tensors, folder: Path) -> Path:
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


def test_saved_parameters_come_back(
    params: nnx.State, tensors: Tensors, tmp_path: Path
):
    assert_equal(loaded(write(tensors, tmp_path)), params)


def test_bfloat16_files_and_bfloat16_parameters(params: nnx.State, tmp_path: Path):
    save_params(params, tmp_path, ml_dtypes.bfloat16)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert_equal(loaded(tmp_path, "bfloat16"), rounded)


def newest(name: str) -> str:
    """Names in memory of transformers 5: `model.` first, no inner model names."""
    name = name.replace("vision_tower.vision_model.", "vision_tower.")
    return "model." + name.replace("language_model.model.", "language_model.")


def between(name: str) -> str:
    """Only the decoder's inner name is gone."""
    return "model." + name.replace("language_model.model.", "language_model.")


@pytest.mark.parametrize("renamed", [newest, between])
def test_names_of_other_releases_are_read(
    renamed: Callable[[str], str], params: nnx.State, tensors: Tensors, tmp_path: Path
):
    assert any(name.startswith("language_model.model.layers.0.") for name in tensors)
    assert any(name.startswith("vision_tower.vision_model.enc") for name in tensors)
    other = {renamed(name): tensor for name, tensor in tensors.items()}
    assert_equal(loaded(write(other, tmp_path)), params)


def test_sharded_files_are_read(params: nnx.State, tensors: Tensors, tmp_path: Path):
    weight_map = {}
    for i, name in enumerate(sorted(tensors)):
        weight_map[name] = f"model-{i % 3}.safetensors"
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        safetensors.numpy.save_file(part, tmp_path / file)
    index = json.dumps({"weight_map": weight_map})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert_equal(loaded(tmp_path), params)


def test_position_ids_are_left_out():
    name = "vision_tower.vision_model.embeddings.position_ids"
    assert parameter_name(name) is None


TABLE = "language_model.model.embed_tokens.weight"
HEADS = (
    "lm_head.weight",
    "language_model.lm_head.weight",
    "model.language_model.lm_head.weight",
)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_equals_the_table_is_the_table(
    params: nnx.State, tensors: Tensors, tmp_path: Path, head: str
):
    folder = write(tensors | {head: tensors[TABLE]}, tmp_path)
    for is_tied in (True, False):
        assert not has_own_head(folder, is_tied=is_tied)
    assert_equal(loaded(folder), params)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_alone_is_the_table(
    params: nnx.State, tensors: Tensors, tmp_path: Path, head: str
):
    other = {head if name == TABLE else name: x for name, x in tensors.items()}
    folder = write(other, tmp_path)
    assert not has_own_head(folder, is_tied=True)
    assert_equal(loaded(folder), params)
    with pytest.raises(ValueError, match=r"expected both embed_tokens\.weight and lm_"):
        has_own_head(folder, is_tied=False)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("is_tied", [True, False])
def test_another_head_is_not_left_out(
    tensors: Tensors, tmp_path: Path, head: str, is_tied: bool
):
    folder = write(tensors | {head: tensors[TABLE][::-1].copy()}, tmp_path)
    assert has_own_head(folder, is_tied=is_tied)
    with pytest.raises(ValueError, match=r"expected no lm_head\.weight, or that of"):
        loaded(folder)
    config = tiny_checkpoints.paligemma_config("gemma")
    graph, params = load_module(
        lambda rngs: PaliGemma(config, rngs=rngs, has_own_head=True), folder, "float32"
    )
    model = nnx.merge(graph, params).language_model
    np.testing.assert_array_equal(
        model.lm_head.weight[...], model.embed_tokens.weight[...][::-1]
    )
    hidden = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
    by_head = model.logits(hidden)
    del model.lm_head
    np.testing.assert_allclose(by_head[:, ::-1], model.logits(hidden), rtol=1e-5)


def test_an_untied_table_alone_is_refused(tensors: Tensors, tmp_path: Path):
    folder = write(tensors, tmp_path)
    with pytest.raises(ValueError, match="tie_word_embeddings=false: expected both"):
        has_own_head(folder, is_tied=False)


QUANTIZED = {
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "I32": np.dtype(np.int32),
    "BOOL": np.dtype(bool),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_numbers_that_are_no_floats_are_refused(
    tensors: Tensors, tmp_path: Path, name: str
):
    matrix = "language_model.model.layers.0.mlp.up_proj.weight"
    changed = tensors | {matrix: tensors[matrix].astype(QUANTIZED[name])}
    with pytest.raises(ValueError, match=f"{matrix} is {name}: expected floats"):
        loaded(write(changed, tmp_path))


def test_layouts_of_quantizers_are_refused(tensors: Tensors, tmp_path: Path):
    layer = "language_model.model.layers.0.mlp.up_proj."
    packed = tensors | {f"{layer}qweight": np.zeros((4, 4), np.int32)}
    with pytest.raises(ValueError, match=r"up_proj\.qweight is I32: expected floats"):
        loaded(write(packed, tmp_path))
    scaled = tensors | {f"{layer}weight_scale": np.zeros(4, np.float32)}
    with pytest.raises(ValueError, match=r"unexpected .*up_proj\.weight_scale"):
        loaded(write(scaled, tmp_path))


@pytest.mark.parametrize("part", [None, "text_config", "vision_config"])
def test_a_quantized_configuration_is_refused(siglip_folder: Path, tmp_path, part):
    values = json.loads((siglip_folder / "config.json").read_text())
    said = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    changed = values | ({part: values[part] | said} if part else said)
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r'quantization_config={"quant_method": "gptq'):
        load_config(tmp_path, SiglipConfig)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_configuration_that_is_no_json_is_named(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: expected "):
        load_config(tmp_path, SiglipConfig)


NORM = "language_model.norm.weight"
STORED_NORM = "language_model.model.norm.weight"


def test_a_missing_tensor_is_named(tensors: Tensors, tmp_path: Path):
    fewer = {name: tensor for name, tensor in tensors.items() if name != STORED_NORM}
    with pytest.raises(ValueError, match=f"but 1 differ: missing {NORM}$"):
        loaded(write(fewer, tmp_path))


def test_an_unexpected_tensor_is_named(tensors: Tensors, tmp_path: Path):
    more = tensors | {"language_model.model.adapter": np.zeros(3)}
    with pytest.raises(ValueError, match=r"unexpected language_model\.adapter$"):
        loaded(write(more, tmp_path))


def test_a_wrong_shape_is_named(tensors: Tensors, tmp_path: Path):
    wrong = tensors | {STORED_NORM: np.zeros(31, np.float32)}
    problem = rf"{NORM} has shape \(31,\), expected \(32,\)$"
    with pytest.raises(ValueError, match=problem):
        loaded(write(wrong, tmp_path))


def test_a_cut_file_is_named(tensors: Tensors, tmp_path: Path):
    path = write(tensors, tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"^{path}: expected a whole safetensors file"):
        loaded(tmp_path)


def test_the_configuration_says_which_model_it_is(siglip_folder: Path):
    config = load_config(siglip_folder, SiglipConfig)
    assert config.vision_config.image_size == tiny_checkpoints.VISION["image_size"]
    with pytest.raises(ValueError, match="'siglip': expected 'paligemma'"):
        load_config(siglip_folder, PaliGemmaConfig)


def test_a_folder_without_configuration_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"expected config\.json in it$"):
        load_config(tmp_path, SiglipConfig)
