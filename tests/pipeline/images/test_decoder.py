"""Tests of decoding under limits: what is accepted, and what is refused and how."""

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms

from pipeline.config.curation import Limits
from pipeline.images.decoder import FORMATS, ImageError, decode, open_image
from tests.support import mutants

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


def test_16_bit_color_is_scaled():
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


def test_a_transparent_palette_color_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    data = encode(image, "PNG", transparency=1)
    assert decode(data, LIMITS).rgb.tolist() == [[[10, 20, 30], [255, 255, 255]]]


ORIENTATION_TO_UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x.swapaxes(0, 1), 2),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation, file_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(gradient(), file_format, exif=exif.tobytes())
    expected = ORIENTATION_TO_UPRIGHT[orientation](gradient()).astype(int)
    rgb = decode(data, LIMITS).rgb
    assert rgb.shape == expected.shape
    assert np.abs(rgb - expected).max() <= 24


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "block", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"junk" * 99]
)
def test_exif_that_cannot_be_read_costs_no_image(block, file_format):
    data = encode(gradient(), file_format, exif=b"Exif\0\0" + block)
    assert decode(data, LIMITS).rgb.shape == (24, 32, 3)


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


JPEG = FILES["jpeg"]
SCAN = JPEG.index(b"\xff\xda")


@pytest.mark.parametrize(
    "data",
    [
        patched(JPEG, SCAN + 12, b"\0"),  # the last coefficient, as some phones write
        patched(JPEG, JPEG.index(b"JFIF") + 5, b"\2"),
        JPEG[:20] + b"between" + JPEG[20:],
        JPEG[:20] + b"\xff" * 9 + JPEG[20:],
        JPEG[:-2] + bytes(100) + JPEG[-2:],
        JPEG + b"ftypmp42" + b"\xff\xda" * 200,
        JPEG + JPEG,
        JPEG[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\7") + JPEG[2:],
        JPEG[:2] + segment(0xEE, b"Adobe") + JPEG[2:],
        JPEG[:2] + segment(0xE0, b"JFIF\0\1") + JPEG[20:],
        JPEG[:2] + segment(0xE2, b"MPF\0MM\0*" + bytes(40)) + JPEG[2:],
        JPEG[:2] + segment(0xE1, b"Exif\0\0" + JPEG) + JPEG[2:],
        JPEG[:2] + segment(0xE2, b"ICC_PROFILE\0\1\2half") + JPEG[2:],
    ],
)
def test_a_slip_costs_no_pixel_and_is_not_handed_on(data):
    image = open_image(data, LIMITS)
    assert np.array_equal(image.decode(), decode(JPEG, LIMITS).rgb)
    plain = image.plain_bytes()
    assert np.array_equal(simplejpeg.decode_jpeg(plain), decode(JPEG, LIMITS).rgb)
    with Image.open(io.BytesIO(plain)) as by_pillow:
        assert by_pillow.format == "JPEG"
    assert len(plain) < len(JPEG) + 20


def test_a_height_behind_the_scan_is_named():
    at = JPEG.index(b"\xff\xc0") + 5
    data = patched(JPEG, at, b"\0\0")[:-2] + segment(0xDC, b"\0\x18") + JPEG[-2:]
    with pytest.raises(ImageError, match="JPEG: 32 x 0 pixels in its header"):
        decode(data, LIMITS)


def test_inks_are_inverted_where_there_is_an_adobe_segment_and_only_there():
    adobe = FILES["cmyk jpeg"]
    at = adobe.index(b"\xff\xee")
    without = adobe[:at] + adobe[at + 16 :]
    with Image.open(io.BytesIO(without)) as image:
        light = np.asarray(image).astype(int)  # Pillow inverts all of them
    expected = light[..., :3] * light[..., 3:] / 255
    assert np.abs(decode(without, LIMITS).rgb - expected).max() <= 1
    for transform in (0, 1, 7):
        data = patched(adobe, at + 15, bytes([transform]))
        assert decode(data, LIMITS).rgb.shape == (24, 32, 3)


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + checksum


@pytest.mark.parametrize(
    "data",
    [
        patched(FILES["png"], len(FILES["png"]) - 4, b"abcd"),  # of IEND
        patched(FILES["png"], len(FILES["png"]) - 16, b"abcd"),  # of IDAT
        FILES["png"][:33] + chunk(b"ABCD", b"of nobody") + FILES["png"][33:],
    ],
)
def test_a_png_is_handed_on_with_right_checksums_and_known_chunks(data):
    image = open_image(data, LIMITS)
    assert np.array_equal(image.decode(), decode(FILES["png"], LIMITS).rgb)
    assert image.plain_bytes() == FILES["png"]


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(9_000_000))),
        chunk(b"iCCP", b"k\0\0damaged") * 2,
        chunk(b"pHYs", b"1"),
        chunk(b"tIME", b"1234567")[:-1] + b"?",
    ],
)
def test_what_lies_beside_the_pixels_of_a_png_costs_no_image(extra):
    png = FILES["png"]
    image = open_image(png[:33] + extra + png[33:], LIMITS)
    assert np.array_equal(image.decode(), gradient())
    assert image.plain_bytes() == png


def test_a_profile_is_converted_and_an_unusable_one_is_not():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile, is_kept in ((srgb, True), (b"junk" * 99, False)):
        data = encode(gradient(), "JPEG", icc_profile=profile)
        image = open_image(data, LIMITS)
        assert np.array_equal(image.decode(), decode(JPEG, LIMITS).rgb)
        assert (image.plain_bytes() == data) == is_kept
    xyz = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = xyz.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ")
    swapped = wide.replace(b"????", b"gXYZ")  # red is green
    for file_format in ("JPEG", "PNG", "WEBP"):
        image = open_image(encode(gradient(), file_format, icc_profile=swapped), LIMITS)
        error = np.abs(image.decode().astype(int) - gradient()[..., [1, 0, 2]]).mean()
        assert error < 10
        assert image.plain_bytes() is None


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x1cftypavif", "AVIF image"),
        (b"\0\0\0\x1cftypheic", "HEIC image"),
        (b"II*\0", "TIFF image"),
        (b"<!DOCTYPE html><p>", "HTML page"),
        (b" <?xml version='1.0'?><svg>", "SVG drawing"),
        (b"8BPS", "Photoshop image"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000 image"),
    ],
)
def test_formats_that_are_not_read_are_named(data, name):
    with pytest.raises(ImageError, match=f"^{name}: expected a JPEG, PNG or WebP"):
        decode(data, LIMITS)


@pytest.mark.parametrize("name", ["BMP", "GIF", "TIFF"])
def test_readers_of_evaluation_sets_take_more_formats(name):
    decoded = decode(encode(gradient(), name), LIMITS, formats=FORMATS)
    assert (decoded.format, decoded.rgb.shape) == (name.lower(), (24, 32, 3))


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


def test_a_jpeg_without_pixels_is_told():
    with pytest.raises(ImageError, match="JPEG: expected a frame and a scan"):
        decode(b"\xff\xd8\xff\xda\x00\x03\x01")
