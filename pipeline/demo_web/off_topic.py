"""Pictures that have nothing to do with scenes: textures, printed text, noise."""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]

_SENTENCE = (
    "the quick report of monthly sales shows that prices rose again in most "
    "regions while orders fell by a third see page four for more details and notes"
)


def draw_off_topic(rng: np.random.Generator, side_px: int) -> tuple[Image, str]:
    """A square picture, RGB `[s, s, 3]`, and true English alt text of it."""
    kinds = tuple(_KIND_TO_DRAW)
    kind = kinds[int(rng.integers(len(kinds)))]
    rgb = _KIND_TO_DRAW[kind](rng, side_px)
    texts = _KIND_TO_TEXTS[kind]
    return rgb, texts[int(rng.integers(len(texts)))]


def _smooth(rng: np.random.Generator, side_px: int, shape: tuple[int, int]) -> Image:
    """Noise of (rows, columns) cells, enlarged smoothly, float32 in [0, 1]."""
    coarse = rng.random(shape, np.float32)
    field = cv2.resize(coarse, (side_px, side_px), interpolation=cv2.INTER_CUBIC)
    return field.clip(0, 1)


def _wood(rng: np.random.Generator, side_px: int) -> Image:
    grain = _smooth(rng, side_px, (3, 5)) * rng.uniform(3, 6)
    y = np.linspace(0, rng.uniform(5, 12), side_px, dtype=np.float32)[:, None]
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * (grain + y * rng.uniform(0.6, 1.4)))
    fibres = _smooth(rng, side_px, (side_px // 2, 6))
    share = (0.7 * rings + 0.3 * fibres)[..., None]
    dark, light = np.array((92, 58, 32)), np.array((186, 140, 92))
    return _to_image(dark + share * (light - dark))


def _clouds(rng: np.random.Generator, side_px: int) -> Image:
    octaves = [_smooth(rng, side_px, (2**i, 2**i)) / 2**i for i in range(2, 6)]
    field = sum(octaves)
    share = ((field - field.min()) / np.ptp(field))[..., None]
    sky, white = np.array((96, 150, 214)), np.array((246, 248, 250))
    return _to_image(sky + share * (white - sky))


def _printed_text(rng: np.random.Generator, side_px: int) -> Image:
    page = np.full((side_px, side_px, 3), rng.integers(235, 256), np.uint8)
    ink = int(rng.integers(0, 70))
    scale = rng.uniform(0.3, 0.5)
    line_px = int(34 * scale)
    for y in range(line_px, side_px, line_px):
        line = " ".join(rng.choice(_SENTENCE.split(), 8))
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(page, line, (4, y), font, scale, (ink, ink, ink), 1, cv2.LINE_AA)
    return page


def _static(rng: np.random.Generator, side_px: int) -> Image:
    n = side_px // int(rng.integers(1, 4))
    noise = rng.integers(0, 256, (n, n, 1), np.uint8).repeat(3, axis=2)
    return cv2.resize(noise, (side_px, side_px), interpolation=cv2.INTER_NEAREST)


def _to_image(values: npt.NDArray) -> Image:
    return np.rint(values).clip(0, 255).astype(np.uint8)


_KIND_TO_DRAW: dict[str, Callable[[np.random.Generator, int], Image]] = {
    "wood": _wood,
    "clouds": _clouds,
    "text": _printed_text,
    "static": _static,
}
_KIND_TO_TEXTS = {
    "wood": ("a wood grain texture", "close up of a brown wooden board"),
    "clouds": ("white clouds in a blue sky", "a cloudy sky seen from below"),
    "text": ("a page of printed text", "scan of a report with many lines of text"),
    "static": ("grey static noise on a screen", "a pattern of random grey noise"),
}
