"""Exported folders in transformers: the vectors are ours, at all released widths."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import transformers
from flax import nnx

from trainer.config import ModelConfig, tips_model
from trainer.exchange import formats, hugging_face, released
from trainer.exchange.released import Released
from trainer.models import two_tower
from trainer.tokenizer import Tokenizer, train

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

SIZES = ("S/14", "B/14", "L/14", "So400m/14", "g/14")
TEXTS = (
    "a red circle",
    "Two GREEN triangles, a straße and a café",
    "an emoji 😀😀 and 漢字 that no piece covers",
    "  spaces\tand\nlines  ",
    "long " * 90,
)


def reduced(size: str, side: int) -> ModelConfig:
    """A released width with one layer in each tower, and few words."""
    model = tips_model(size, (side, side))
    return dataclasses.replace(
        model,
        vision=dataclasses.replace(model.vision, n_layers=1 if size == "g/14" else 2),
        text=dataclasses.replace(model.text, n_layers=1, vocabulary_size=300),
    )


def noisy(model: ModelConfig) -> Released:
    """Random everywhere, so that no array could take another's place."""
    params = two_tower.init_params(model, 0)
    rng = np.random.default_rng(0)
    noise = jax.tree.map(
        lambda x: x + 0.05 * rng.standard_normal(x.shape, np.float32), params
    )
    return released.from_params(noise, model, size_px=224, step=1)


@functools.cache
def vocabulary() -> bytes:
    words = " ".join(TEXTS[:2]).lower().split()
    return train([" ".join(words[i:] + words[:i]) for i in range(len(words))] * 3, 60)


def images(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height + width)
    return rng.integers(0, 256, (2, height, width, 3), np.uint8)


def text_ids(n_words: int) -> np.ndarray:
    ids = np.random.default_rng(0).integers(2, n_words, (3, 64)).astype(np.int32)
    ids[0, 5:], ids[1, 33:] = 0, 0
    return ids


def theirs_of(folder) -> "transformers.Tipsv2Model":
    """Raises unless each tensor of the file has its place in the model."""
    model, found = transformers.AutoModel.from_pretrained(
        folder, output_loading_info=True
    )
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]
    assert set(found["missing_keys"]) <= {"temperature"}
    return model.eval()


def relative_error(ours: np.ndarray, theirs: "torch.Tensor") -> float:
    """The largest difference beside the largest value."""
    expected = theirs.numpy()
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())


def image_errors(ours: nnx.Module, theirs, image: np.ndarray) -> dict[str, float]:
    with torch.no_grad():
        pixels = torch.tensor(image).permute(0, 3, 1, 2) / 255
        tokens = theirs.get_image_features(pixels).last_hidden_state
    found = ours.encode_image(image)
    patches = np.asarray(found.patches).reshape(len(image), -1, tokens.shape[-1])
    return {
        "cls": relative_error(found.cls, tokens[:, :2]),
        "patches": relative_error(patches, tokens[:, 2:]),
    }


def text_error(ours: nnx.Module, theirs, ids: np.ndarray) -> float:
    with torch.no_grad():
        found = theirs.get_text_features(
            input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(ids != 0)
        )
    return relative_error(ours.encode_text(ids), found.pooler_output)


@pytest.mark.parametrize("side", [16, 32], ids=["v1", "v2"])
@pytest.mark.parametrize("size", SIZES)
def test_vectors_of_a_folder_equal_ours(tmp_path, size: str, side: int):
    model = noisy(reduced(size, side))
    hugging_face.write(model, tmp_path)
    ours = nnx.merge(two_tower.graph(model.model), model.params())
    theirs = theirs_of(tmp_path)
    for height, width in ((224, 224), (448, 448), (140, 322)):
        errors = image_errors(ours, theirs, images(height, width))
        print(size, side, height, width, errors)
        assert max(errors.values()) < 1e-4
    error = text_error(ours, theirs, text_ids(300))
    print(size, "text", error)
    assert error < 1e-4
    assert float(theirs.temperature.detach()) == pytest.approx(model.temperature)


def test_the_exact_gelu_differs_a_little(tmp_path):
    """What released folders compute differs from training by this much."""
    model = noisy(reduced("B/14", 16))
    hugging_face.write(model, tmp_path, gelu="exact")
    ours = nnx.merge(two_tower.graph(model.model), model.params())
    errors = image_errors(ours, theirs_of(tmp_path), images(224, 224))
    print(errors)
    assert 1e-5 < max(errors.values()) < 1e-2


def test_what_transformers_saves_is_read(tmp_path):
    model = noisy(reduced("S/14", 16))
    (tmp_path / "ours").mkdir()
    hugging_face.write(model, tmp_path / "ours")
    theirs = theirs_of(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="5MB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    found = hugging_face.read(tmp_path / "theirs")
    assert found.model == model.model
    jax.tree.map(np.testing.assert_array_equal, found.params(), model.params())


def test_the_tokenizer_of_a_folder_gives_our_ids(tmp_path):
    path = tmp_path / "ours.model"
    path.write_bytes(vocabulary())
    folder = tmp_path / "folder"
    folder.mkdir()
    hugging_face.write(noisy(reduced("S/14", 16)), folder)
    formats.write_tokenizer(path, formats.Format.HF, folder, 64)
    ours = Tokenizer(path, 64)(TEXTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = tokenizer(list(TEXTS), padding="max_length", truncation=True)
    assert theirs.keys() == {"input_ids", "attention_mask"}
    assert 1 in ours[2]
    for text, one, other in zip(TEXTS, ours, theirs["input_ids"], strict=True):
        assert one.tolist() == other, text
    np.testing.assert_array_equal(theirs["attention_mask"], ours != 0)
