import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import SiglipImageProcessorPil

from pipeline.models.image_preparation import ImagePreparation


def write(folder: Path, resample: object = 3, **changes: object) -> Path:
    size = {"height": 24, "width": 24}
    changes |= {"resample": resample}
    processor = SiglipImageProcessorPil(
        size=size, image_mean=[0.5, 0.4, 0.3], image_std=[0.2] * 3
    )
    processor.save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("shape", [(97, 31, 3), (24, 24, 3), (9, 13, 3)])
def test_pixels_equal_those_of_hugging_face(
    tmp_path: Path, resample: int, shape: tuple[int, int, int]
):
    rgb = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    folder = write(tmp_path, resample)
    preparation = ImagePreparation.load(folder)
    ours = preparation.normalize(preparation.resize(rgb)[None])
    processor = SiglipImageProcessorPil.from_pretrained(folder)
    (theirs,) = processor(images=rgb, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(ours[0], theirs.transpose(1, 2, 0), atol=1e-6)


def test_pixels_stay_in_the_unit_range_if_nothing_is_to_be_normalized(tmp_path: Path):
    preparation = ImagePreparation.load(write(tmp_path, do_normalize=False))
    rgb = np.random.default_rng(0).integers(0, 256, (1, 24, 24, 3), np.uint8)
    np.testing.assert_allclose(preparation.normalize(rgb), rgb / 255, atol=1e-7)


def without(folder: Path, *fields: str) -> Path:
    path = folder / "preprocessor_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in values.items() if k not in fields}))
    return folder


FIELDS = (
    *("size", "resample", "image_mean", "image_std", "do_normalize", "do_rescale"),
    *("do_resize", "rescale_factor", "image_processor_type", "do_convert_rgb"),
)


@pytest.mark.parametrize("fields", [*((field,) for field in FIELDS), FIELDS])
def test_missing_fields_are_those_of_hugging_face(
    tmp_path: Path, fields: tuple[str, ...]
):
    """Either is missing, and all at once."""
    folder = without(write(tmp_path), *fields)
    values = json.loads((folder / "preprocessor_config.json").read_text())
    assert_pixels_equal(folder, SiglipImageProcessorPil(**values))


@pytest.mark.parametrize(
    "changes",
    [
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": 1, "image_mean": 100, "image_std": 50.5},
        {"rescale_factor": 1 / 127.5, "do_normalize": False},
        {"size": [24, 24]},
        {"resample": 0},
        {"resample": 5},
        {"image_mean": 0.4, "image_std": 0.3},
        {"do_normalize": None},
        {"do_center_crop": None, "crop_size": None, "do_pad": None},
        {"do_center_crop": True, "crop_size": {"height": 24, "width": 24}},
        {"do_center_crop": False, "crop_size": {"height": 20, "width": 20}},
    ],
)
def test_other_fields_are_honored(tmp_path: Path, changes: dict[str, object]):
    folder = write(tmp_path, **changes)
    assert_pixels_equal(folder, SiglipImageProcessorPil.from_pretrained(folder))


def assert_pixels_equal(folder: Path, processor: SiglipImageProcessorPil) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (97, 31, 3), np.uint8)
    preparation = ImagePreparation.load(folder)
    ours = preparation.normalize(preparation.resize(rgb)[None])
    (theirs,) = processor(images=rgb, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(ours[0], theirs.transpose(1, 2, 0), rtol=1e-5, atol=1e-5)


def test_a_number_is_a_square(tmp_path: Path):
    assert ImagePreparation.load(write(tmp_path, size=24)).size_px == 24


def test_missing_fields_of_tips_are_those_of_its_own_processor(tmp_path: Path):
    for text in ('{"image_processor_type": "Tipsv2ImageProcessorFast"}', "{}"):
        (tmp_path / "preprocessor_config.json").write_text(text)
        found = ImagePreparation.load(tmp_path, model_type="tipsv2")
        resampling = Image.Resampling.BILINEAR
        assert found == ImagePreparation(size_px=448, resampling=resampling)


def test_the_file_of_the_whole_processor_comes_first(tmp_path: Path):
    folder = write(tmp_path, resample=0)
    path = folder / "processor_config.json"
    path.write_text('{"processor_class": "PaliGemmaProcessor"}')
    assert ImagePreparation.load(folder).resampling == Image.Resampling.NEAREST
    path.write_text('{"image_processor": {"resample": 1, "size": 40}}')
    assert ImagePreparation.load(folder).resampling == Image.Resampling.LANCZOS
    assert ImagePreparation.load(folder).size_px == 40


def test_settings_merged_into_the_processor_file_are_read(tmp_path: Path):
    alone = write(tmp_path) / "preprocessor_config.json"
    expected = ImagePreparation.load(tmp_path)
    merged = {"image_processor": json.loads(alone.read_text())}
    (tmp_path / "processor_config.json").write_text(json.dumps(merged))
    alone.unlink()
    assert ImagePreparation.load(tmp_path) == expected


def test_a_checkpoint_without_preprocessor_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"expected preprocessor_config\.json or"):
        ImagePreparation.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"size": {"height": 24, "width": 32}}, "expected a square"),
        ({"size": {"shortest_edge": 24}}, "expected a square"),
        ({"do_resize": False}, "do_resize=false: expected true"),
        ({"do_rescale": False}, "do_rescale=false: expected true"),
        ({"do_resize": "no"}, 'do_resize="no": expected true or false'),
        ({"size": {"longest_edge": 24}}, "expected a square"),
        ({"size": {"height": 24}}, "expected a square"),
        ({"size": 24.5}, "size=24.5: expected a square"),
        ({"size": 0}, "size=0: expected a square"),
        ({"size": "24"}, "expected a square"),
        ({"size": None}, "size=null: expected a square"),
        ({"size": [24, 24, 24]}, "expected a square"),
        ({"resample": "bicubic"}, 'resample="bicubic": expected a number of Pillow'),
        ({"resample": 6}, "resample=6: expected a number of Pillow's filters, 0 to 5"),
        ({"resample": None}, "resample=null: expected"),
        ({"image_mean": [0.5, 0.5]}, "image_mean=.*: expected a number, or three"),
        ({"image_mean": None}, "image_mean=null: expected a number"),
        ({"image_std": [0.5, "x", 0.5]}, "image_std=.*: expected a number"),
        ({"image_std": 0}, "image_std=.*: expected no zeros"),
        ({"rescale_factor": 0}, "rescale_factor=0: expected a positive number"),
        ({"rescale_factor": None}, "rescale_factor=null: expected a positive"),
        ({"do_center_crop": True, "crop_size": 20}, "crop_size=20: expected the size"),
        ({"do_pad": True, "pad_size": 40}, "pad_size=40: expected the size, 24"),
        ({"image_processor_type": "CLIPImageProcessor"}, "expected SiglipImageProc"),
    ],
)
def test_unusual_preprocessors_are_refused(
    tmp_path: Path, changes: dict[str, object], problem: str
):
    with pytest.raises(ValueError, match=f"^{tmp_path}.*{problem}"):
        ImagePreparation.load(write(tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "[]", "3", '{"size": '])
def test_a_preprocessor_that_is_no_json_is_named(tmp_path: Path, text: str):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: expected"):
        ImagePreparation.load(tmp_path)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3))],
)
def test_anything_but_uint8_rgb_is_refused(tmp_path: Path, image: np.ndarray):
    with pytest.raises(ValueError, match=r"expected uint8 \[height, width, 3\]"):
        ImagePreparation.load(write(tmp_path)).resize(image)


def test_a_batch_of_another_size_is_refused(tmp_path: Path):
    preparation = ImagePreparation.load(write(tmp_path))
    with pytest.raises(ValueError, match=r"expected uint8 \[n, 24, 24, 3\]"):
        preparation.check_batch(np.zeros((2, 24, 25, 3), np.uint8))
