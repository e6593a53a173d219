"""Tests of decoding under limits: what is accepted, and what is refused and how."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Limits
from pipeline.images import ImageError, decode
from tests import mutants

LIMITS = Limits(max_pixels=10_000, max_image_bytes=100_000)
RNG_SEED = 0


def gradient(height: int = 24, width: int = 32) -> np.ndarray:
    """uint8 RGB that a lossy codec keeps within a few levels."""
    rows, columns = np.mgrid[:height, :width]
    planes = (rows * 255 // height, columns * 255 // width, np.full_like(rows, 90))
    return np.stack(planes, axis=-1).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, file_format: str, **options) -> bytes:
    file = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(file, file_format, **options)
    return file.getvalue()


def png_with(header: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of an IHDR and other chunks, with right checksums."""
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def assert_pixels_or_one_line(data: bytes) -> None:
    error = ""
    try:
        rgb = decode(data, LIMITS).rgb
        assert (rgb.dtype, rgb.ndim, rgb.shape[2]) == (np.uint8, 3, 3)
    except ImageError as failure:
        error = str(failure)
    assert "\n" not in error


FILES = {
    "jpeg": encode(gradient(), "JPEG"),
    "progressive jpeg": encode(gradient(), "JPEG", progressive=True),
    "gray jpeg": encode(gradient()[..., 0], "JPEG"),
    "cmyk jpeg": encode(Image.fromarray(gradient()).convert("CMYK"), "JPEG"),
    "png": encode(gradient(), "PNG"),
    "palette png": encode(Image.fromarray(gradient()).quantize(16), "PNG"),
    "webp": encode(gradient(), "WEBP"),
    "lossless webp": encode(gradient(), "WEBP", lossless=True),
}


@pytest.mark.parametrize(
    ("name", "image_format"), [("jpeg", "jpeg"), ("png", "png"), ("webp", "webp")]
)
def test_pixels_and_format_are_those_of_the_file(name, image_format):
    decoded = decode(FILES[name], LIMITS)
    assert decoded.format == image_format
    assert decoded.rgb.dtype == np.uint8
    difference = decoded.rgb.astype(int) - gradient()
    assert np.abs(difference).max() <= (0 if name == "png" else 16)


@pytest.mark.parametrize("name", FILES)
def test_every_kind_becomes_rgb(name):
    assert decode(FILES[name], LIMITS).rgb.shape == (24, 32, 3)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_an_error(name):
    data = FILES[name]
    for length in range(len(data)):
        with pytest.raises(ImageError):
            decode(data[:length], LIMITS)


@pytest.mark.parametrize("name", FILES)
def test_damage_gives_pixels_or_an_error_of_one_line(name):
    rng = np.random.default_rng(RNG_SEED)
    for _ in range(200):
        data = bytearray(FILES[name])
        for position in rng.integers(4, len(data), 2):
            data[position] = rng.integers(256)
        assert_pixels_or_one_line(bytes(data))


def test_damage_inside_a_jpeg_is_an_error():
    data = bytearray(FILES["jpeg"])
    scan = data.index(b"\xff\xda")
    data[scan + 30 : scan + 60] = b"\xff\xd0" * 15
    with pytest.raises(ImageError, match=r"^JPEG: "):
        decode(bytes(data), LIMITS)


def test_cmyk_is_converted_as_pillow_does():
    with Image.open(io.BytesIO(FILES["cmyk jpeg"])) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(decode(FILES["cmyk jpeg"], LIMITS).rgb - expected).max() <= 1


def test_16_bit_gray_is_scaled_and_not_clipped():
    data = encode(np.array([[0, 256, 0x7FFF, 0xFFFF]], np.uint16), "PNG")
    assert decode(data, LIMITS).rgb.tolist() == [[[v] * 3 for v in (0, 1, 127, 255)]]


def test_16_bit_colour_is_scaled():
    pixels = struct.pack(">3H", 0x0100, 0x8000, 0xFFFF)
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    data = png_with(header, (b"IDAT", zlib.compress(b"\0" + pixels)))
    assert decode(data, LIMITS).rgb.tolist() == [[[1, 128, 255]]]


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_transparency_is_laid_on_white(file_format):
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    data = encode(pixels, file_format, lossless=True, exact=True)
    expected = [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]
    assert decode(data, LIMITS).rgb.tolist() == expected


def test_a_transparent_palette_colour_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    data = encode(image, "PNG", transparency=1)
    assert decode(data, LIMITS).rgb.tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    data = encode(gradient(), "JPEG", exif=exif.tobytes())
    assert decode(data, LIMITS).rgb.shape == (24, 32, 3)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_more_than_one_frame_is_an_error(file_format):
    frames = [Image.fromarray(gradient()), Image.fromarray(255 - gradient())]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=r"^2 frames: expected a still image$"):
        decode(data, LIMITS)


@pytest.mark.parametrize("data", [b"", b"not an image", encode(gradient(), "GIF")])
def test_another_format_is_an_error(data):
    with pytest.raises(ImageError, match="expected a JPEG, PNG or WebP image"):
        decode(data, LIMITS)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_the_bound_on_pixels_is_exact(file_format):
    data = encode(gradient(), file_format)
    decode(data, Limits(max_pixels=24 * 32))
    with pytest.raises(
        ImageError, match=r"^768 pixels: expected at most max_pixels=767$"
    ):
        decode(data, Limits(max_pixels=24 * 32 - 1))


def test_a_png_that_claims_to_be_huge_is_refused_by_its_header():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = png_with(header, (b"IDAT", zlib.compress(b"\0" * 100)))
    with pytest.raises(ImageError, match=r"^3600000000 pixels: expected at most"):
        decode(data, Limits())


def test_a_jpeg_that_claims_to_be_huge_is_refused_by_its_header():
    data = bytearray(FILES["jpeg"])
    size = data.index(b"\xff\xc0") + 5
    data[size : size + 4] = struct.pack(">HH", 65_000, 65_000)
    with pytest.raises(ImageError, match=r"^4225000000 pixels: expected at most"):
        decode(bytes(data), Limits())


def test_the_bound_on_bytes_is_exact():
    size = len(FILES["png"])
    decode(FILES["png"], Limits(max_image_bytes=size))
    with pytest.raises(
        ImageError, match=f"expected at most max_image_bytes={size - 1}"
    ):
        decode(FILES["png"], Limits(max_image_bytes=size - 1))


def test_a_palette_png_without_palette_is_an_error():
    header = struct.pack(">IIBBBBB", 1, 1, 8, 3, 0, 0, 0)
    data = png_with(header, (b"IDAT", zlib.compress(b"\0\0")))
    with pytest.raises(ImageError, match=r"^PNG: its palette is missing$"):
        decode(data, LIMITS)


def test_one_pixel_is_an_image():
    assert decode(encode(gradient(1, 1), "PNG"), LIMITS).rgb.shape == (1, 1, 3)


def test_a_jpeg_of_many_passes_over_its_blocks_is_an_error():
    limits = Limits()
    rgb = decode(mutants.scans_jpeg(64, 40, n_scans=99), limits).rgb
    assert rgb.shape == (40, 64, 3)
    with pytest.raises(ImageError, match=r"^801 scans: expected at most 100$"):
        decode(mutants.scans_jpeg(9_000, 9_000, n_scans=800), limits)
