"""What is planted in the drawn crawl: for each kind of defect, one pair that has it.

In: a picture of a scene and a numpy `Generator`. Out: an encoded image, its alt text
and what is true of them. Nothing here reads or writes a file.
"""

import dataclasses
import enum
import io
import struct
import zlib
from collections.abc import Callable, Mapping

import cv2
import numpy as np
from PIL import Image

from pipeline.demo_web import descriptions, off_topic, rendering
from pipeline.demo_web import scene as drawing
from pipeline.demo_web.scene import Scene
from pipeline.demo_web.translations import LANGUAGES, translated
from pipeline.records import KEPT, UNREADABLE, DropReason


class Planted(enum.StrEnum):
    """What is wrong, or unusual, with a pair of the crawl."""

    NONE = "none"
    MISMATCHED_ALT_TEXT = "mismatched_alt_text"
    OTHER_LANGUAGE = "other_language"
    BOILERPLATE_ALT_TEXT = "boilerplate_alt_text"
    EXACT_DUPLICATE = "exact_duplicate"
    NEAR_COPY = "near_copy"
    OFF_TOPIC = "off_topic"
    TRUNCATED_JPEG = "truncated_jpeg"
    EMPTY_FILE = "empty_file"
    NOT_AN_IMAGE = "not_an_image"
    DECOMPRESSION_BOMB = "decompression_bomb"
    ANIMATED_GIF = "animated_gif"
    MISSING_ALT_TEXT = "missing_alt_text"
    ALT_TEXT_NOT_UTF8 = "alt_text_not_utf8"
    ONE_PIXEL = "one_pixel"
    CMYK_JPEG = "cmyk_jpeg"
    SIXTEEN_BIT_PNG = "sixteen_bit_png"


class Transform(enum.StrEnum):
    """How a near-copy of an evaluation image differs from it."""

    RESIZED = "resized"
    CROPPED = "cropped"
    RECOMPRESSED = "recompressed"
    BRIGHTNESS = "brightness"
    MIRRORED = "mirrored"


PLANTED_TO_OUTCOME: Mapping[Planted, str] = {
    Planted.NONE: KEPT,
    Planted.MISMATCHED_ALT_TEXT: DropReason.LOW_ALIGNMENT,
    Planted.OTHER_LANGUAGE: DropReason.LANGUAGE,
    Planted.BOILERPLATE_ALT_TEXT: DropReason.BOILERPLATE_ALT_TEXT,
    Planted.EXACT_DUPLICATE: DropReason.EXACT_DUPLICATE,
    Planted.NEAR_COPY: DropReason.NEAR_EVALUATION,
    Planted.OFF_TOPIC: DropReason.FAR_FROM_SEEDS,
    Planted.TRUNCATED_JPEG: UNREADABLE,
    Planted.EMPTY_FILE: UNREADABLE,
    Planted.NOT_AN_IMAGE: UNREADABLE,
    Planted.DECOMPRESSION_BOMB: UNREADABLE,
    Planted.ANIMATED_GIF: UNREADABLE,
    Planted.MISSING_ALT_TEXT: UNREADABLE,
    Planted.ALT_TEXT_NOT_UTF8: UNREADABLE,
    Planted.ONE_PIXEL: DropReason.TINY_IMAGE,
    Planted.CMYK_JPEG: KEPT,
    Planted.SIXTEEN_BIT_PNG: KEPT,
}
PLANTED_TO_PERCENT: Mapping[Planted, int] = {
    Planted.MISMATCHED_ALT_TEXT: 8,
    Planted.OTHER_LANGUAGE: 12,
    Planted.BOILERPLATE_ALT_TEXT: 4,
    Planted.EXACT_DUPLICATE: 5,
    Planted.NEAR_COPY: 6,
    Planted.OFF_TOPIC: 5,
}
BROKEN_PERCENT = 4  # of all pairs, in this order over and over
BROKEN = (
    Planted.TRUNCATED_JPEG,
    Planted.EMPTY_FILE,
    Planted.NOT_AN_IMAGE,
    Planted.DECOMPRESSION_BOMB,
    Planted.ANIMATED_GIF,
    Planted.MISSING_ALT_TEXT,
    Planted.ALT_TEXT_NOT_UTF8,
    Planted.ONE_PIXEL,
    Planted.CMYK_JPEG,
    Planted.SIXTEEN_BIT_PNG,
)

BOILERPLATE = (
    "IMG_2031.jpg",
    "DSC_0042",
    "for sale 30k",
    "click to enlarge",
    "image 3 of 8",
    "untitled",
    "stock photo",
    "$ 29.99",
)

BOMB_SIDE_PX = 60_000

_QUALITIES = range(85, 96)
_RECOMPRESSED_QUALITIES = range(25, 41)
_CROPPED_AREA = 0.8
_EXTENSIONS = ("jpg", "png", "webp")
_EXTENSION_SHARES = (0.8, 0.1, 0.1)
_HTML = b"<!DOCTYPE html>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n"

Rgb = drawing.Image  # uint8 [h, w, 3]


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A scene and its pixels."""

    scene: Scene
    rgb: Rgb
    mask: drawing.Image  # class ids, uint8 [h, w]


@dataclasses.dataclass(frozen=True)
class DrawnPair:
    """One pair of the crawl and the truth about it."""

    image: bytes  # encoded
    extension: str
    size_px: tuple[int, int]  # width, height; of the bomb, what it claims
    alt_text: bytes | None  # None: the pair has no text
    scene: Scene | None  # None: the image shows no scene
    planted: Planted = Planted.NONE
    language: str = "en"  # of the alt text, ISO 639-1
    transform: str = ""  # a `Transform` of a near-copy
    duplicate_of: str = ""  # key of the image that it repeats


def sample_picture(rng: np.random.Generator) -> Picture:
    """A scene of 96 to 160 px on its shorter side; a quarter are not square."""
    scene = drawing.sample_scene(rng)
    side_px = int(rng.integers(96, 161))
    aspect = rng.uniform(0.67, 1.5) if rng.random() < 0.25 else 1.0
    return Picture(scene, *rendering.draw(scene, side_px, aspect))


def encode(rgb: Rgb, extension: str, quality: int = 90) -> bytes:
    """The file of an image; `quality` of "jpg" and "webp" in 1..100."""
    options = {
        "jpg": [cv2.IMWRITE_JPEG_QUALITY, quality],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, quality],
        "png": [],
    }[extension]
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(f".{extension}", bgr, options)
    return data.tobytes()


def encode_jpeg(rgb: Rgb, rng: np.random.Generator) -> bytes:
    """A JPEG of one of the usual qualities."""
    return encode(rgb, "jpg", int(rng.choice(_QUALITIES)))


def plant(planted: Planted, picture: Picture, rng: np.random.Generator) -> DrawnPair:
    """A pair with a defect that needs nothing but a picture of a scene."""
    pair = _PLANTED_TO_PLANT[planted](picture, rng)
    return dataclasses.replace(pair, planted=planted)


def exact_duplicate(
    original: DrawnPair, key: str, rng: np.random.Generator
) -> DrawnPair:
    """The image of a clean pair, with the same or with another true alt text."""
    alt_text = original.alt_text
    if original.scene is not None and rng.random() < 0.5:
        alt_text = descriptions.alt_text(original.scene, rng).encode()
    return dataclasses.replace(
        original,
        alt_text=alt_text,
        planted=Planted.EXACT_DUPLICATE,
        duplicate_of=key,
    )


@dataclasses.dataclass(frozen=True)
class Copy:
    """Which near-copy to make: of which image, how, and with which JPEG quality."""

    key: str
    transform: Transform
    quality_index: int  # equal transforms of one image differ in it, so in their bytes

    @property
    def quality(self) -> int:
        is_low = self.transform is Transform.RECOMPRESSED
        qualities = _RECOMPRESSED_QUALITIES if is_low else _QUALITIES
        return qualities[self.quality_index % len(qualities)]


def near_copy(picture: Picture, copy: Copy, rng: np.random.Generator) -> DrawnPair:
    """A changed evaluation image with alt text that is true of it."""
    is_mirrored = copy.transform is Transform.MIRRORED
    scene = drawing.flip(picture.scene) if is_mirrored else picture.scene
    rgb = transformed(picture.rgb, copy.transform, rng)
    return DrawnPair(
        image=encode(rgb, "jpg", copy.quality),
        extension="jpg",
        size_px=_size_px(rgb),
        alt_text=descriptions.alt_text(scene, rng).encode(),
        scene=scene,
        planted=Planted.NEAR_COPY,
        transform=copy.transform,
        duplicate_of=copy.key,
    )


def transformed(rgb: Rgb, transform: Transform, rng: np.random.Generator) -> Rgb:
    """The pixels of a near-copy; those of a recompressed image are the same.

    A crop keeps the center: the frame of a scene is free of objects, and a crop to a
    corner could cut off enough of the largest object to make the alt text wrong.
    """
    match transform:
        case Transform.RESIZED:
            scale = rng.uniform(0.6, 1.5)
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            return cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=method)
        case Transform.CROPPED:
            return _crop(rgb, _CROPPED_AREA)
        case Transform.BRIGHTNESS:
            return cv2.convertScaleAbs(rgb, alpha=rng.uniform(0.75, 1.25))
        case Transform.MIRRORED:
            return cv2.flip(rgb, 1)
        case Transform.RECOMPRESSED:
            return rgb


def off_topic_pair(rng: np.random.Generator) -> DrawnPair:
    """A picture that is no scene, with true alt text."""
    rgb, text = off_topic.draw_off_topic(rng, int(rng.integers(96, 161)))
    return DrawnPair(
        image=encode_jpeg(rgb, rng),
        extension="jpg",
        size_px=_size_px(rgb),
        alt_text=text.encode(),
        scene=None,
        planted=Planted.OFF_TOPIC,
    )


def other_scenes_alt_text(scene: Scene, rng: np.random.Generator) -> str:
    """Alt text of a scene that has none of the objects of this one.

    The largest objects of the two differ in color and in shape.
    """
    largest = descriptions.by_visible_area(scene)[0]
    pairs = {obj.pair for obj in scene.objects}
    while True:
        other = drawing.sample_scene(rng)
        first = descriptions.by_visible_area(other)[0]
        is_apart = pairs.isdisjoint(obj.pair for obj in other.objects)
        if is_apart and first.color != largest.color and first.shape != largest.shape:
            return descriptions.alt_text(other, rng)


def decompression_bomb() -> bytes:
    """A PNG of a few kB whose header claims 3.6 gigapixels."""
    header = struct.pack(">IIBBBBB", BOMB_SIDE_PX, BOMB_SIDE_PX, 8, 2, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"IDAT", zlib.compress(bytes(1 << 20))),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data))
        + name
        + data
        + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _clean(picture: Picture, rng: np.random.Generator) -> DrawnPair:
    extension = str(rng.choice(_EXTENSIONS, p=_EXTENSION_SHARES))
    return DrawnPair(
        image=encode(picture.rgb, extension, int(rng.choice(_QUALITIES))),
        extension=extension,
        size_px=_size_px(picture.rgb),
        alt_text=descriptions.alt_text(picture.scene, rng).encode(),
        scene=picture.scene,
    )


def _with_text(
    picture: Picture, rng: np.random.Generator, text: bytes | None, language: str
) -> DrawnPair:
    return dataclasses.replace(_clean(picture, rng), alt_text=text, language=language)


def _with_image(
    picture: Picture, rng: np.random.Generator, image: bytes, extension: str = "jpg"
) -> DrawnPair:
    pair = _clean(picture, rng)
    return dataclasses.replace(pair, image=image, extension=extension)


def _mismatched_alt_text(picture: Picture, rng: np.random.Generator) -> DrawnPair:
    text = other_scenes_alt_text(picture.scene, rng)
    return _with_text(picture, rng, text.encode(), "en")


def _other_language(picture: Picture, rng: np.random.Generator) -> DrawnPair:
    language = str(rng.choice(LANGUAGES))
    text = translated(picture.scene, language)
    return _with_text(picture, rng, text.encode(), language)


def _boilerplate(picture: Picture, rng: np.random.Generator) -> DrawnPair:
    return _with_text(picture, rng, str(rng.choice(BOILERPLATE)).encode(), "")


def _missing_alt_text(picture: Picture, rng: np.random.Generator) -> DrawnPair:
    return _with_text(picture, rng, None, "")


def _alt_text_not_utf8(picture: Picture, rng: np.random.Generator) -> DrawnPair:
    text = f"{descriptions.alt_text(picture.scene, rng)} \N{COPYRIGHT SIGN} 2019"
    return _with_text(picture, rng, text.encode("latin-1"), "en")


def _truncated_jpeg(picture: Picture, rng: np.random.Generator) -> DrawnPair:
    jpeg = encode_jpeg(picture.rgb, rng)
    return _with_image(picture, rng, jpeg[: len(jpeg) * 3 // 5])


def _empty_file(picture: Picture, rng: np.random.Generator) -> DrawnPair:
    return _with_image(picture, rng, b"")


def _not_an_image(picture: Picture, rng: np.random.Generator) -> DrawnPair:
    return _with_image(picture, rng, _HTML)


def _decompression_bomb(picture: Picture, rng: np.random.Generator) -> DrawnPair:
    pair = _with_image(picture, rng, decompression_bomb(), "png")
    return dataclasses.replace(pair, size_px=(BOMB_SIDE_PX, BOMB_SIDE_PX))


def _animated_gif(picture: Picture, rng: np.random.Generator) -> DrawnPair:
    first, second = (
        Image.fromarray(rgb) for rgb in (picture.rgb, picture.rgb[:, ::-1])
    )
    gif = _save(first, "GIF", save_all=True, append_images=[second], duration=200)
    return _with_image(picture, rng, gif)


def _one_pixel(picture: Picture, rng: np.random.Generator) -> DrawnPair:
    pair = _with_image(picture, rng, encode_jpeg(picture.rgb[:1, :1], rng))
    return dataclasses.replace(pair, size_px=(1, 1))


def _cmyk_jpeg(picture: Picture, rng: np.random.Generator) -> DrawnPair:
    cmyk = Image.fromarray(picture.rgb).convert("CMYK")
    return _with_image(
        picture, rng, _save(cmyk, "JPEG", quality=int(rng.choice(_QUALITIES)))
    )


def _sixteen_bit_png(picture: Picture, rng: np.random.Generator) -> DrawnPair:
    bgr = cv2.cvtColor(picture.rgb, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".png", bgr.astype(np.uint16) * 257)  # 255 becomes 65535
    return _with_image(picture, rng, data.tobytes(), "png")


def _save(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def _crop(rgb: Rgb, area: float) -> Rgb:
    """The center of an image, of its aspect and a share of its area."""
    height, width = rgb.shape[:2]
    new_height, new_width = round(height * area**0.5), round(width * area**0.5)
    y, x = (height - new_height) // 2, (width - new_width) // 2
    return rgb[y : y + new_height, x : x + new_width]


def _size_px(rgb: Rgb) -> tuple[int, int]:
    return rgb.shape[1], rgb.shape[0]


_PLANTED_TO_PLANT: Mapping[
    Planted, Callable[[Picture, np.random.Generator], DrawnPair]
] = {
    Planted.NONE: _clean,
    Planted.MISMATCHED_ALT_TEXT: _mismatched_alt_text,
    Planted.OTHER_LANGUAGE: _other_language,
    Planted.BOILERPLATE_ALT_TEXT: _boilerplate,
    Planted.TRUNCATED_JPEG: _truncated_jpeg,
    Planted.EMPTY_FILE: _empty_file,
    Planted.NOT_AN_IMAGE: _not_an_image,
    Planted.DECOMPRESSION_BOMB: _decompression_bomb,
    Planted.ANIMATED_GIF: _animated_gif,
    Planted.MISSING_ALT_TEXT: _missing_alt_text,
    Planted.ALT_TEXT_NOT_UTF8: _alt_text_not_utf8,
    Planted.ONE_PIXEL: _one_pixel,
    Planted.CMYK_JPEG: _cmyk_jpeg,
    Planted.SIXTEEN_BIT_PNG: _sixteen_bit_png,
}
