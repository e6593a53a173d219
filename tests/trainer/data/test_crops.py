import math

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from trainer.config import CropConfig
from trainer.data import crops

UNIT = st.floats(0, 1, exclude_max=True)
CENTER = (0.5, 0.5, 0.5, 0.5, 0.9)


@hypothesis.given(
    height=st.integers(1, 900),
    width=st.integers(1, 900),
    draws=st.lists(UNIT, min_size=4, max_size=4),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_a_box_lies_in_the_image_and_has_an_allowed_aspect(height, width, draws):
    config = CropConfig()
    box = crops.random_box(height, width, draws, config)
    assert 0 <= box.top <= box.top + box.height <= height
    assert 0 <= box.left <= box.left + box.width <= width
    rounding = 0.5 / min(box.height, box.width)
    slack = math.inf if rounding == 0.5 else (1 + rounding) / (1 - rounding)
    aspect = box.width / box.height
    assert config.min_aspect / slack <= aspect <= config.max_aspect * slack


@pytest.mark.parametrize("area", [0.4, 0.7, 1.0])
@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
def test_a_box_has_the_drawn_area(area, draw):
    config = CropConfig(min_area=area, max_area=area)
    box = crops.random_box(480, 512, (0.3, draw, 0.5, 0.5), config)
    assert box.height * box.width / (480 * 512) == pytest.approx(area, abs=0.005)


def test_a_very_wide_image_gives_the_largest_box_of_the_widest_aspect():
    config = CropConfig(min_area=1.0)
    box = crops.random_box(90, 600, (0.0, 0.0, 0.0, 0.999), config)
    assert box == crops.Box(top=0, left=480, height=90, width=120)


def test_draws_span_all_places():
    config = CropConfig(min_area=0.5, max_area=0.5, min_aspect=1.0, max_aspect=1.0)
    corners = [
        crops.random_box(100, 100, (0.0, 0.0, top, left), config)[:2]
        for top in (0.0, 0.9999)
        for left in (0.0, 0.9999)
    ]
    assert corners == [(0, 0), (0, 29), (29, 0), (29, 29)]


IMAGE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)


def view(image, draws, config, factor=1):
    size = [factor * length for length in image.shape[:2]]
    out = np.empty((config.size_px, config.size_px, 3), np.uint8)
    crops.cut(image, crops.random_crop(*size, draws, config), factor, out)
    return out


def test_the_whole_image_is_kept_when_the_box_is_the_image():
    config = CropConfig(size_px=8, min_area=1.0)
    assert np.array_equal(view(IMAGE, CENTER, config), IMAGE)


def test_a_low_last_draw_flips():
    config = CropConfig(size_px=8, min_area=1.0)
    flipped = view(IMAGE, (*CENTER[:4], 0.49), config)
    assert np.array_equal(flipped, IMAGE[:, ::-1])


def test_a_crop_of_a_reduced_image_shows_the_same_part():
    config = CropConfig(size_px=4, min_area=0.25, max_area=0.25, min_aspect=1.0)
    draws = (0.0, 0.0, 0.999, 0.0, 0.9)
    assert np.array_equal(view(IMAGE, draws, config, factor=2), IMAGE[4:, :4])


@pytest.mark.parametrize(
    ("sides", "factor"),
    [((223, 98), 1), ((448, 195), 1), ((448, 196), 2), ((1800, 800), 8), ((9, 9), 1)],
)
def test_the_smallest_crop_limits_how_far_an_image_is_reduced(sides, factor):
    chosen = [
        crops.Crop(crops.Box(0, 0, side, side + 50), size_px, False)
        for side, size_px in zip(sides, (224, 98), strict=True)
    ]
    assert crops.reduction(chosen) == factor


def test_each_row_of_draws_is_a_crop_of_its_own():
    draws = np.array([CENTER, (0.1, 0.2, 0.3, 0.4, 0.1)])
    config = CropConfig(size_px=4)
    one, other = crops.random_crops(60, 80, draws, config)
    assert one == crops.random_crop(60, 80, CENTER, config)
    assert (one.is_flipped, other.is_flipped) == (False, True)
    assert one.box != other.box


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_stripes_too_fine_for_the_result_become_gray(factor):
    stripes = np.zeros((28 * factor, 28 * factor, 3), np.uint8)
    stripes[:, ::2] = 200
    resized = crops.resize(stripes, 28).astype(int)
    assert abs(resized.mean() - 100) < 2
    # A lone stripe more or less falls into each pixel when the factor is odd.
    assert np.abs(resized - 100).max() <= 100 / factor + 1


@pytest.mark.parametrize("shape", [(20, 300), (61, 61), (57, 90), (3, 5)])
def test_any_shape_becomes_a_square_of_the_same_brightness(shape):
    image = np.full((*shape, 3), (10, 100, 200), np.uint8)
    assert (crops.resize(image, 28) == (10, 100, 200)).all()
    assert crops.resize(image, 28).shape == (28, 28, 3)


@pytest.mark.parametrize(("side", "tolerance"), [(40, 2), (90, 2), (131, 7)])
def test_resizing_is_near_to_exact_area_means(side, tolerance):
    """Of a ramp, which shows that halving 131 to 32 loses the last 3 pixels."""
    rows, columns = np.meshgrid(*[np.linspace(0, 250, side)] * 2, indexing="ij")
    image = np.stack([rows, columns, rows], axis=-1).astype(np.uint8)
    expected = cv2.resize(image, (28, 28), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(crops.resize(image, 28) - expected).max() <= tolerance
