"""Near-copies: their texts stay true, and no two are equal."""

import numpy as np
import pytest

from pipeline.config.curation import Limits
from pipeline.demo_web import descriptions, near_copies
from pipeline.demo_web.near_copies import Copy, Transform
from pipeline.images.decoder import decode

LIMITS = Limits()


def test_alt_text_of_a_mirrored_copy_is_that_of_the_mirrored_scene(picture, rng):
    pair = near_copies.near_copy(picture, Copy("", Transform.MIRRORED, 0), rng)
    largest = picture.scene.objects.index(
        descriptions.by_visible_area(picture.scene)[0]
    )
    assert pair.scene.objects[largest].cx == 1 - picture.scene.objects[largest].cx
    rgb = decode(pair.image, LIMITS).rgb.astype(int)
    assert np.abs(rgb - picture.rgb[:, ::-1]).mean() < 10


@pytest.mark.parametrize(
    ("transform", "low", "high"),
    [
        (Transform.RESIZED, 0.35, 2.26),
        (Transform.CROPPED, 0.78, 0.82),
        (Transform.RECOMPRESSED, 1, 1),
        (Transform.BRIGHTNESS, 1, 1),
    ],
)
def test_transforms_change_the_area_as_they_should(transform, low, high, picture, rng):
    rgb = near_copies.apply_transform(picture.rgb, transform, rng)
    assert low <= rgb.size / picture.rgb.size <= high


def test_equal_transforms_of_one_image_differ_in_bytes(picture, rng):
    copies = [Copy("", Transform.CROPPED, i) for i in range(5)]
    images = {near_copies.near_copy(picture, copy, rng).image for copy in copies}
    assert len(images) == 5
