"""Defects planted in the drawn crawl: for each kind, one pair that has it.

In: a picture of a scene and a numpy `Generator`. Out: an encoded image, its alt text
and what is true of them. Nothing here reads or writes a file.
"""

import dataclasses
import io
import struct
import zlib
from collections.abc import Callable, Mapping

import cv2
import numpy as np
from PIL import Image

from pipeline.demo_web import descriptions, off_topic
from pipeline.demo_web import scene as drawing
from pipeline.demo_web.drawn_pair import (
    QUALITIES,
    DrawnPair,
    Picture,
    Planted,
    encode,
    encode_jpeg,
    size_px,
)
from pipeline.demo_web.scene import Scene
from pipeline.demo_web.translations import LANGUAGES, translate
from pipeline.records import KEPT, UNREADABLE, DropReason

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

_EXTENSIONS = ("jpg", "png", "webp")
_EXTENSION_SHARES = (0.8, 0.1, 0.1)
_HTML = b"<!DOCTYPE html>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n"


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


def off_topic_pair(rng: np.random.Generator) -> DrawnPair:
    """A picture that is no scene, with true alt text."""
    rgb, text = off_topic.draw_off_topic(rng, int(rng.integers(96, 161)))
    return DrawnPair(
        image=encode_jpeg(rgb, rng),
        extension="jpg",
        size_px=size_px(rgb),
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
        image=encode(picture.rgb, extension, int(rng.choice(QUALITIES))),
        extension=extension,
        size_px=size_px(picture.rgb),
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
    text = translate(picture.scene, language)
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
        picture, rng, _save(cmyk, "JPEG", quality=int(rng.choice(QUALITIES)))
    )


def _sixteen_bit_png(picture: Picture, rng: np.random.Generator) -> DrawnPair:
    bgr = cv2.cvtColor(picture.rgb, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".png", bgr.astype(np.uint16) * 257)  # 255 becomes 65535
    return _with_image(picture, rng, data.tobytes(), "png")


def _save(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


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
