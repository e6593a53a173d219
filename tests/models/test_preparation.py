import json
from pathlib import Path

import numpy as np
import pytest
from transformers import SiglipImageProcessorPil

from pipeline.models.preparation import ImagePreparation


def write(folder: Path, resample: int = 3, **changes: object) -> Path:
    size = {"height": 24, "width": 24}
    processor = SiglipImageProcessorPil(
        size=size, resample=resample, image_mean=[0.5, 0.4, 0.3], image_std=[0.2] * 3
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
    ours = preparation.normalised(preparation.resized(rgb)[None])
    processor = SiglipImageProcessorPil.from_pretrained(folder)
    (theirs,) = processor(images=rgb, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(ours[0], theirs.transpose(1, 2, 0), atol=1e-6)


def test_pixels_stay_in_the_unit_range_if_nothing_is_to_be_normalised(tmp_path: Path):
    preparation = ImagePreparation.load(write(tmp_path, do_normalize=False))
    rgb = np.random.default_rng(0).integers(0, 256, (1, 24, 24, 3), np.uint8)
    np.testing.assert_allclose(preparation.normalised(rgb), rgb / 255, atol=1e-7)


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
    ],
)
def test_unusual_preprocessors_are_refused(
    tmp_path: Path, changes: dict[str, object], problem: str
):
    with pytest.raises(ValueError, match=problem):
        ImagePreparation.load(write(tmp_path, **changes))


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3))],
)
def test_anything_but_uint8_rgb_is_refused(tmp_path: Path, image: np.ndarray):
    with pytest.raises(ValueError, match=r"expected uint8 \[height, width, 3\]"):
        ImagePreparation.load(write(tmp_path)).resized(image)


def test_a_batch_of_another_size_is_refused(tmp_path: Path):
    preparation = ImagePreparation.load(write(tmp_path))
    with pytest.raises(ValueError, match=r"expected uint8 \[n, 24, 24, 3\]"):
        preparation.check_batch(np.zeros((2, 24, 25, 3), np.uint8))
