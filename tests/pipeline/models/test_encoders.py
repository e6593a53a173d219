import concurrent.futures
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.curation import EncoderConfig
from pipeline.models import encoders
from pipeline.models.encoders import NullEncoder, SiglipEncoder
from pipeline.models.interfaces import Encoder
from tests.support import tiny_checkpoints

IMAGES = tiny_checkpoints.random_images(7)
TEXTS = ["a red circle", "two green triangles", "", "a blue square", "Ünïcode 猫"]


@pytest.fixture(scope="module")
def siglip(siglip_folder: Path) -> SiglipEncoder:
    return SiglipEncoder.load(str(siglip_folder), 4, "float32")


@pytest.fixture(params=["siglip", "null"])
def encoder(request: pytest.FixtureRequest, siglip: SiglipEncoder) -> Encoder:
    return siglip if request.param == "siglip" else NullEncoder(image_size_px=40)


def test_rows_have_length_one_and_differ(encoder: Encoder):
    for rows in (encoder.encode_images(IMAGES), encoder.encode_texts(TEXTS)):
        assert (rows.dtype, rows.shape[1]) == (np.float32, encoder.embedding_dim)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        assert len(np.unique(rows, axis=0)) == len(rows)


def test_a_row_does_not_depend_on_place_neighbors_or_padding(encoder: Encoder):
    images = encoder.encode_images(IMAGES)
    np.testing.assert_array_equal(encoder.encode_images(IMAGES[::-1]), images[::-1])
    np.testing.assert_array_equal(encoder.encode_images(IMAGES[5:6]), images[5:6])
    texts = encoder.encode_texts(TEXTS)
    np.testing.assert_array_equal(encoder.encode_texts(TEXTS[::-1]), texts[::-1])
    np.testing.assert_array_equal(encoder.encode_texts(TEXTS[2:3]), texts[2:3])


def test_no_rows_give_no_rows(encoder: Encoder):
    empty = (0, encoder.embedding_dim)
    assert encoder.encode_images(IMAGES[:0]).shape == empty
    assert encoder.encode_texts([]).shape == empty


def test_prepared_images_can_be_encoded(encoder: Encoder):
    rgb = np.random.default_rng(0).integers(0, 256, (51, 33, 3), np.uint8)
    prepared = encoder.prepare_image(rgb)
    side = encoder.image_size_px
    assert (prepared.dtype, prepared.shape) == (np.uint8, (side, side, 3))
    assert encoder.encode_images(prepared[None]).shape == (1, encoder.embedding_dim)


def test_threads_get_the_same_rows(encoder: Encoder):
    expected = encoder.encode_texts(TEXTS)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for rows in pool.map(encoder.encode_texts, [TEXTS] * 32):
            np.testing.assert_array_equal(rows, expected)


def test_texts_are_lower_cased(siglip: SiglipEncoder):
    upper, lower = siglip.encode_texts(["A RED Circle", "a red circle"])
    np.testing.assert_array_equal(upper, lower)


def test_texts_are_padded_right_and_cut_before_the_end_token(siglip: SiglipEncoder):
    short, long = siglip.tokens.ids(["a", "a red circle " * 30])
    assert len(short) == len(long) == 18
    assert short[1:].tolist() == [1] + [0] * 16
    assert long[-1] == 1
    assert 0 not in long


def test_bfloat16_is_close_to_float32(siglip_folder: Path, siglip: SiglipEncoder):
    rounded = SiglipEncoder.load(str(siglip_folder), 4, "bfloat16")
    difference = rounded.encode_images(IMAGES) - siglip.encode_images(IMAGES)
    assert 0 < np.abs(difference).max() < 0.1


def test_identity_holds_what_determines_the_rows(siglip_folder: Path):
    def identity(dtype: str, batch_size: int) -> object:
        return SiglipEncoder.load(str(siglip_folder), batch_size, dtype).identity

    assert identity("float32", 4) == identity("float32", 2)
    assert identity("float32", 4) != identity("bfloat16", 4)


def test_a_captioner_is_no_encoder(paligemma_folder: Path):
    with pytest.raises(ValueError, match="'paligemma': expected 'siglip'"):
        SiglipEncoder.load(str(paligemma_folder), 4, "float32")


def test_images_that_were_not_prepared_are_refused(siglip: SiglipEncoder):
    with pytest.raises(ValueError, match=r"expected uint8 \[n, 40, 40, 3\]"):
        siglip.encode_images(np.zeros((1, 41, 40, 3), np.uint8))


def changed(folder: Path, copy: Path, name: str, **changes: object) -> EncoderConfig:
    shutil.copytree(folder, copy)
    values = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(values | changes))
    return EncoderConfig(str(copy), batch_size=2)


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("preprocessor_config.json", {"size": 48}, "image_size 40"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 40}}, "a square"),
        ("preprocessor_config.json", {"resample": 9}, "resample=9"),
        ("config.json", {"quantization_config": {"bits": 4}}, "weights of floats"),
        ("config.json", {"model_type": "clip"}, "'clip': expected 'siglip'"),
    ],
)
def test_what_cannot_be_read_is_refused_without_its_weights(
    siglip_folder: Path,
    tmp_path: Path,
    name: str,
    changes: dict[str, object],
    problem: str,
):
    config = changed(siglip_folder, tmp_path / "copy", name, **changes)
    with pytest.raises(ValueError, match=problem):
        encoders.check(config)
    with pytest.raises(ValueError, match=problem):
        encoders.load_encoder(config)


def test_weights_of_another_model_are_refused_before_they_are_read(
    siglip_folder: Path, paligemma_folder: Path, tmp_path: Path
):
    shutil.copytree(siglip_folder, tmp_path / "copy")
    name = "model.safetensors"
    shutil.copyfile(paligemma_folder / name, tmp_path / "copy" / name)
    with pytest.raises(ValueError, match=r"but \d+ differ: missing"):
        encoders.check(EncoderConfig(str(tmp_path / "copy")))


def test_what_can_be_read_is_not_refused(siglip_folder: Path):
    encoders.check(EncoderConfig(str(siglip_folder)))
