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
