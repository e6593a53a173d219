"""One pair of the drawn crawl: a picture of a scene, its file, what is true of it.

In: a numpy `Generator`. Out: pixels, encoded images, and records of what was drawn.
"""

import dataclasses
import enum

import cv2
import numpy as np

from pipeline.demo_web import rendering
from pipeline.demo_web import scene as drawing
from pipeline.demo_web.scene import Scene

QUALITIES = range(85, 96)  # of JPEG and WebP files, as on the web

Rgb = drawing.Image  # uint8 [h, w, 3]


class Planted(enum.StrEnum):
    """The defect, or oddity, of a pair of the crawl."""

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
    transform: str = ""  # a `near_copies.Transform`
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
    return encode(rgb, "jpg", int(rng.choice(QUALITIES)))


def size_px(rgb: Rgb) -> tuple[int, int]:
    """Width and height."""
    return rgb.shape[1], rgb.shape[0]
