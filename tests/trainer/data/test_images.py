"""Images as the trainer decodes them: reduced, upright, and by the pipeline's decoder.

What files become which pixels is tested in `tests/pipeline/images/test_decoder.py`.
"""

import numpy as np
import pytest
from PIL import Image

from pipeline.images import decoder as images
from tests.support import tiny_export

PICTURE = tiny_export.picture(0)
FORMATS = ("jpeg", "png", "webp")


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_gives_the_picture(image_format):
    data = tiny_export.encoded(PICTURE, image_format)
    pixels = images.decode(data, formats=(image_format,)).rgb
    assert (pixels.dtype, pixels.shape) == (np.uint8, (32, 40, 3))
    assert np.abs(pixels - np.asarray(PICTURE).astype(int)).mean() < 6


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.9])
def test_a_truncated_image_is_an_error(image_format, share):
    data = tiny_export.encoded(PICTURE, image_format)
    with pytest.raises(ValueError, match=r"."):
        images.decode(data[: int(share * len(data))])


def test_the_named_format_is_the_only_one_tried():
    with pytest.raises(ValueError, match=r"^WebP image: expected a PNG image$"):
        images.open_image(tiny_export.encoded(PICTURE, "webp"), formats=("png",))


def turned(orientation: int, image_format: str = "jpeg", picture=PICTURE) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return tiny_export.encoded(picture, image_format, exif=exif)


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize(
    ("orientation", "size"),
    [(1, (32, 40)), (3, (32, 40)), (6, (40, 32)), (7, (40, 32))],
)
def test_the_size_is_that_of_the_upright_pixels(image_format, orientation, size):
    image = images.open_image(turned(orientation, image_format))
    assert image.size == size
    assert image.decode().shape == (*size, 3)


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_fast_pixels_are_near_to_means_of_the_exact_ones(reduction, orientation):
    picture = tiny_export.picture(0, size=(160, 120))
    image = images.open_image(turned(orientation, picture=picture))
    pixels, factor = image.decode_fast(reduction)
    assert factor == reduction
    height, width = (side // reduction for side in image.size)
    assert pixels.shape == (height, width, 3)
    exact = image.decode().reshape(height, reduction, width, reduction, 3)
    assert np.abs(pixels - exact.mean(axis=(1, 3))).mean() < 3


def test_a_reduced_side_is_rounded_up():
    data = tiny_export.encoded(tiny_export.picture(0, size=(33, 47)))
    assert images.open_image(data).decode_fast(4)[0].shape == (12, 9, 3)


def test_only_jpegs_are_reduced():
    image = images.open_image(tiny_export.encoded(PICTURE, "png"))
    pixels, factor = image.decode_fast(4)
    assert factor == 1
    assert np.array_equal(pixels, image.decode())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.9])
def test_a_truncated_image_is_an_error_at_every_reduction(share):
    data = tiny_export.encoded(PICTURE)
    for reduction in (1, 8):
        with pytest.raises(ValueError, match=r"."):
            images.open_image(data[: int(share * len(data))]).decode_fast(reduction)
