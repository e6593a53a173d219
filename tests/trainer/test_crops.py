import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from trainer import crops
from trainer.config import CropConfig

UNIT = st.floats(0, 1, exclude_max=True)
CENTRE = (0.5, 0.5, 0.5, 0.5, 0.9)


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


def test_the_whole_image_is_kept_when_the_box_is_the_image():
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    config = CropConfig(size_px=4, min_area=1.0)
    assert np.array_equal(crops.global_crop(image, CENTRE, config), image)


def test_a_low_last_draw_flips():
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    config = CropConfig(size_px=4, min_area=1.0)
    flipped = crops.global_crop(image, (*CENTRE[:4], 0.49), config)
    assert np.array_equal(flipped, image[:, ::-1])


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_stripes_too_fine_for_the_result_become_gray(factor):
    stripes = np.zeros((28 * factor, 28 * factor, 3), np.uint8)
    stripes[:, ::2] = 200
    resized = crops.resize(stripes, 28).astype(int)
    assert abs(resized.mean() - 100) < 2
    # A lone stripe more or less falls into each pixel when the factor is odd.
    assert np.abs(resized - 100).max() <= 100 / factor + 1
