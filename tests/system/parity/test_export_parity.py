"""Exported folders in transformers: the vectors are ours, at all released widths."""

import dataclasses
import functools
import io

import jax
import numpy as np
import pytest
import sentencepiece
import transformers
from flax import nnx
from PIL import Image

from trainer.config import ModelConfig, tips_model
from trainer.data.text_tokenizer import Tokenizer
from trainer.evals.sets.samples import Sample
from trainer.exchange import exported_weights, formats, hugging_face, tokenizer_probe
from trainer.exchange.exported_weights import ExportedWeights
from trainer.models import two_tower

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


def noisy(model: ModelConfig) -> ExportedWeights:
    """Random everywhere, so that no array could take another's place."""
    params = two_tower.init_params(model, 0)
    rng = np.random.default_rng(0)
    noise = jax.tree.map(
        lambda x: x + 0.05 * rng.standard_normal(x.shape, np.float32), params
    )
    return exported_weights.from_params(noise, model, size_px=224, step=1)


@functools.cache
def vocabulary(model_type: str = "bpe") -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.lower() for text in TEXTS[:4] if text] * 3),
        model_writer=model,
        model_type=model_type,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


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


def written(folder, max_tokens: int, **options) -> ExportedWeights:
    """A folder of a small model with a vocabulary of its own, as `export` writes it."""
    model = reduced("S/14", 16)
    path = folder.parent / "ours.model"
    path.write_bytes(vocabulary(**options))
    size = Tokenizer(path, max_tokens).vocabulary_size
    text = dataclasses.replace(
        model.text, vocabulary_size=size, max_tokens=max_tokens, n_heads=6
    )
    released_model = noisy(dataclasses.replace(model, text=text))
    folder.mkdir()
    formats.check(released_model, path, formats.Format.HF)
    formats.write(released_model, formats.Format.HF, folder)
    formats.write_tokenizer(path, formats.Format.HF, folder, max_tokens)
    return released_model


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return (one * other).sum(axis=-1) / norms


@pytest.mark.parametrize("max_tokens", [7, 48, 64, 96])
def test_texts_have_our_vectors_as_the_card_says(tmp_path, max_tokens: int):
    """The demo's recipe reads 48 tokens; transformers' processor cuts at 64."""
    model = written(tmp_path / "out", max_tokens)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    theirs = theirs_of(tmp_path / "out")
    texts = [text for text in (*TEXTS, *tokenizer_probe.TEXTS) if text.strip("\x01 ")]
    ids = Tokenizer(tmp_path / "ours.model", max_tokens)(texts)
    inputs = processor(text=texts, return_tensors="pt")
    np.testing.assert_array_equal(inputs["input_ids"], ids)
    ours = nnx.merge(two_tower.graph(model.model), model.params()).encode_text(ids)
    with torch.no_grad():
        found = theirs.get_text_features(**inputs).pooler_output.numpy()
    assert cosines(np.asarray(ours), found).min() > 1 - 1e-5


@pytest.mark.parametrize("model_type", ["bpe", "char"])
def test_ids_of_a_folder_are_ours(tmp_path, model_type: str):
    written(tmp_path / "out", 64, model_type=model_type)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = [*TEXTS, *tokenizer_probe.TEXTS]
    found = tokenizer(texts, padding="max_length", truncation=True)
    assert found.keys() == {"input_ids", "attention_mask"}
    ours = Tokenizer(tmp_path / "ours.model", 64)(texts)
    np.testing.assert_array_equal(found["input_ids"], ours)
    np.testing.assert_array_equal(found["attention_mask"], ours != 0)


@pytest.mark.parametrize("shape", [(500, 333), (375, 500), (97, 1200), (60, 60)])
def test_evaluation_feeds_the_pixels_of_the_processor(tmp_path, shape):
    """At most one of 255 levels apart, since torchvision rounds otherwise."""
    model = written(tmp_path / "out", 64)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (*shape, 3), np.uint8)
    steps = np.repeat(noise[:: shape[0] // 9], shape[0] // 9, axis=0)
    for image in (noise, np.ascontiguousarray(steps)):
        inputs = processor(images=Image.fromarray(image), return_tensors="pt")
        theirs = inputs["pixel_values"][0].permute(1, 2, 0).numpy() * 255
        ours = Sample("x", "x", {"image": image}, {}).to_square(model.size_px)
        difference = np.abs(theirs - ours)
        print(shape, difference.max(), difference.mean())
        assert difference.max() < 1.01
        assert difference.mean() < 0.1
