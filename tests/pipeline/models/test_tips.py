"""Exported TIPS models as encoders of the pipeline: the trainer's own vectors."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from pipeline.config.curation import EncoderConfig
from pipeline.models.encoders import Tipsv2Encoder, load_encoder
from pipeline.scoring.encoder_handler import EncoderHandler, PreparedPair
from tests.support.tiny_tips import N_TOKENS, TEXTS, model_of, write
from trainer.config import FeedForward
from trainer.data.text_tokenizer import Tokenizer
from trainer.models import two_tower


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = model_of(FeedForward.GELU, size_px=21)
    return write(tmp_path_factory.mktemp("exports") / "tips", model)


def images(n: int, size_px: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, size_px, size_px, 3), np.uint8)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("feed_forward", "size_px"), [(FeedForward.GELU, 21), (FeedForward.SWIGLU, 35)]
)
def test_vectors_are_those_of_the_trainer(
    tmp_path: Path, feed_forward: FeedForward, size_px: int
):
    model = model_of(feed_forward, size_px)
    path = write(tmp_path / "tips", model)
    params = jax.tree.map(jnp.asarray, model.params())
    trainer = nnx.merge(two_tower.graph(model.model), params)
    rows = images(5, size_px)
    expected = jax.jit(trainer.encode_image)(rows).cls
    for index, cls_token in enumerate(("alt_text", "synthetic_caption")):
        encoder = Tipsv2Encoder.load(str(path), 2, "float32", cls_token)
        found = encoder.encode_images(rows)
        np.testing.assert_allclose(found, unit(expected[:, index]), atol=2e-6)
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 0.1
    ids = Tokenizer(path / "tokenizer.model", N_TOKENS)(TEXTS)
    expected = unit(np.asarray(jax.jit(trainer.encode_text)(ids)))
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, atol=2e-6)


def test_the_exact_gelu_is_used_where_the_folder_says_so(tmp_path: Path, folder: Path):
    model = model_of(FeedForward.GELU, size_px=21)
    exact = write(tmp_path / "exact", model, gelu="exact")
    tanh, other = (
        Tipsv2Encoder.load(str(path), 5, "float32").encode_images(images(5, 21))
        for path in (folder, exact)
    )
    assert 1e-6 < np.abs(tanh - other).max() < 1e-2


def test_a_text_without_a_token_gives_zeros(folder: Path):
    rows = load_encoder(EncoderConfig(str(folder))).encode_texts(["  ", "a red circle"])
    assert not rows[0].any()
    assert np.linalg.norm(rows[1]) == pytest.approx(1, abs=1e-5)


def test_bfloat16_is_close_to_float32(folder: Path):
    exact, rounded = (
        Tipsv2Encoder.load(str(folder), 4, dtype).encode_images(images(4, 21))
        for dtype in ("float32", "bfloat16")
    )
    assert 0 < np.abs(exact - rounded).max() < 0.05


def test_pairs_are_scored_with_the_token_that_is_asked_for(folder: Path):
    pairs = [
        PreparedPair(image, text)
        for image, text in zip(images(2, 21), TEXTS[:2], strict=True)
    ]
    scores = {}
    for cls_token in ("alt_text", "synthetic_caption"):
        config = EncoderConfig(str(folder), batch_size=2, cls_token=cls_token)
        handler = EncoderHandler(config)
        encoder = handler.load_model()
        assert encoder.identity.cls_token == cls_token
        found = handler.run_inference(pairs, encoder)
        for row, pair in zip(found, pairs, strict=True):
            (text,) = encoder.encode_texts([pair.alt_text])
            expected = float(row.embedding @ text)
            assert row.alignment_score == pytest.approx(expected, abs=1e-6)
        scores[cls_token] = [row.alignment_score for row in found]
    assert scores["alt_text"] != scores["synthetic_caption"]


def test_folders_that_transformers_saved_are_read(tmp_path: Path, folder: Path):
    """They have other names for the MLP of images, and a temperature."""
    model = model_of(FeedForward.GELU, size_px=21)
    path = write(tmp_path / "saved", model)
    tensors = safetensors.numpy.load_file(path / "model.safetensors")
    renamed = {
        name.replace(".fc1.", ".c_fc.").replace(".fc2.", ".c_proj."): tensor
        for name, tensor in tensors.items()
    } | {"temperature": np.array(0.01, np.float32)}
    safetensors.numpy.save_file(renamed, path / "model.safetensors")
    ours, theirs = (
        Tipsv2Encoder.load(str(place), 2, "float32").encode_images(images(2, 21))
        for place in (folder, path)
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "group", "changes", "message"),
    [
        ("config.json", "vision_config", {"num_register_tokens": 4}, "=4: expected 1"),
        ("config.json", "vision_config", {"hidden_act": "silu"}, "'silu': expected"),
        ("config.json", "text_config", {"hidden_act": "gelu"}, "expected 'relu'"),
        ("config.json", "vision_config", {"image_size": [21, 28]}, "of a square"),
        (
            "preprocessor_config.json",
            "size",
            {"height": 20, "width": 20},
            "size=20: expected a multiple of the vision tower's patch_size 7",
        ),
    ],
)
def test_another_form_is_named(
    tmp_path: Path, name: str, group: str, changes: dict, message: str
):
    path = write(tmp_path / "tips", model_of(FeedForward.GELU, size_px=21))
    values = json.loads((path / name).read_text())
    values[group] |= changes
    (path / name).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        load_encoder(EncoderConfig(str(path)))


def test_a_folder_without_its_vocabulary_is_named(tmp_path: Path):
    path = write(tmp_path / "tips", model_of(FeedForward.GELU, size_px=21))
    (path / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match=r"tips': expected tokenizer\.model in it"):
        load_encoder(EncoderConfig(str(path)))


def test_siglip_has_one_vector():
    siglip = "curation_configs/checkpoints/tiny-siglip"
    config = EncoderConfig(siglip, cls_token="synthetic_caption")
    with pytest.raises(ValueError, match="expected 'alt_text', or a checkpoint of"):
        load_encoder(config)
