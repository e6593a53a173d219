import numpy as np
import pytest
import tiny_export
from PIL import Image

from trainer import images

PICTURE = tiny_export.picture(0)
FORMATS = ("jpeg", "png", "webp")


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_gives_the_picture(image_format):
    data = tiny_export.encoded(PICTURE, image_format)
    pixels = images.decode(data, image_format)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (32, 40, 3))
    assert np.abs(pixels - np.asarray(PICTURE).astype(int)).mean() < 6


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.9])
def test_a_truncated_image_is_an_error(image_format, share):
    data = tiny_export.encoded(PICTURE, image_format)
    with pytest.raises(ValueError, match=r"."):
        images.decode(data[: int(share * len(data))], image_format)


def test_the_named_format_is_the_only_one_tried():
    with pytest.raises(ValueError, match="expected a whole png image"):
        images.decode(tiny_export.encoded(PICTURE, "webp"), "png")


def test_transparent_pixels_lie_on_white():
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    pixels = images.decode(tiny_export.encoded(image, "png"), "png")
    assert pixels.tolist() == [[[200, 0, 0], [255, 255, 255]]]


def test_16_bit_gray_keeps_its_brightness():
    gray = np.array([[0, 0x8000, 0xFFFF]], np.uint16)
    data = tiny_export.encoded(Image.fromarray(gray), "png")
    assert images.decode(data, "png")[0, :, 0].tolist() == [0, 0x80, 0xFF]


def test_gray_jpegs_have_three_channels():
    data = tiny_export.encoded(PICTURE.convert("L"))
    assert images.decode(data, "jpeg").shape == (32, 40, 3)


def test_cmyk_jpegs_have_the_right_colours():
    red = Image.new("RGB", (16, 16), (230, 20, 30)).convert("CMYK")
    pixels = images.decode(tiny_export.encoded(red), "jpeg")
    assert np.abs(pixels.mean(axis=(0, 1)) - (230, 20, 30)).max() < 12


def test_a_noted_rotation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tiny_export.encoded(PICTURE, "jpeg", exif=exif)
    assert images.decode(file, "jpeg").shape == (32, 40, 3)


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_size_is_that_of_the_pixels(image_format):
    assert images.size(tiny_export.encoded(PICTURE, image_format), image_format) == (
        32,
        40,
    )
    with pytest.raises(ValueError, match=r"."):
        images.size(b"", image_format)


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_fast_pixels_are_near_to_means_of_the_exact_ones(reduction):
    picture = tiny_export.picture(0, size=(160, 120))
    data = tiny_export.encoded(picture)
    pixels, factor = images.decode_fast(data, "jpeg", reduction)
    assert factor == reduction
    assert pixels.shape == (120 // reduction, 160 // reduction, 3)
    exact = images.decode(data, "jpeg").reshape(
        120 // reduction, reduction, 160 // reduction, reduction, 3
    )
    assert np.abs(pixels - exact.mean(axis=(1, 3))).mean() < 3


def test_a_reduced_side_is_rounded_up():
    data = tiny_export.encoded(tiny_export.picture(0, size=(33, 47)))
    assert images.decode_fast(data, "jpeg", 4)[0].shape == (12, 9, 3)


def test_only_jpegs_are_reduced():
    data = tiny_export.encoded(PICTURE, "png")
    pixels, factor = images.decode_fast(data, "png", 4)
    assert factor == 1
    assert np.array_equal(pixels, images.decode(data, "png"))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.9])
def test_a_truncated_image_is_an_error_at_every_reduction(share):
    data = tiny_export.encoded(PICTURE)
    for reduction in (1, 8):
        with pytest.raises(ValueError, match=r"."):
            images.decode_fast(data[: int(share * len(data))], "jpeg", reduction)
