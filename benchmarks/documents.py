"""Measures how well documents that look alike in a thumbnail are distinguished.

    python -m benchmarks.documents

Draws pages, slides, tables and other documents of one template with different contents.
For each kind it prints the highest similarity of different documents by the perceptual
descriptor, and the lowest similarity of their copies.
"""

import itertools
from collections.abc import Callable, Mapping

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageDraw, ImageFont

from pipeline.models.descriptors import Perceptual

N_DOCUMENTS = 20  # of each kind
_LETTERS = "etaoinshrdlucmfwypvbgk"

Draw = Callable[[np.random.Generator], Image.Image]


def _words(rng: np.random.Generator, n: int) -> str:
    """Draws words of 3 to 9 common letters."""
    lengths = rng.integers(3, 10, n)
    return " ".join("".join(rng.choice(list(_LETTERS), k)) for k in lengths)


def _lines(
    image: Image.Image, rng: np.random.Generator, n: int, size_px: int, n_words: int
) -> Image.Image:
    """Writes `n` lines over the height of the page, black on light, white on dark."""
    draw = ImageDraw.Draw(image)
    top, left = image.height // 6, image.width // 14
    pitch = (image.height - top) / n
    is_dark = np.asarray(image)[image.height // 2, -1].mean() < 128
    for line in range(n):
        draw.text(
            (left, top + pitch * line),
            _words(rng, n_words),
            fill="white" if is_dark else "black",
            font=ImageFont.load_default(size_px),
        )
    return image


def page(rng: np.random.Generator) -> Image.Image:
    return _lines(Image.new("RGB", (480, 640), "white"), rng, 34, 13, 10)


def letter(rng: np.random.Generator) -> Image.Image:
    """Draws a letterhead that all letters share, and a few lines."""
    image = Image.new("RGB", (480, 640), "white")
    ImageDraw.Draw(image).rectangle([0, 0, 480, 60], fill=(20, 60, 120))
    return _lines(image, rng, 16, 14, 7)


def slide(rng: np.random.Generator) -> Image.Image:
    return _lines(Image.new("RGB", (640, 480), "white"), rng, 5, 24, 5)


def slide_of_a_template(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (960, 540), "white")
    for top, bottom in ((0, 70), (510, 540)):
        ImageDraw.Draw(image).rectangle([0, top, 960, bottom], fill=(30, 90, 160))
    return _lines(image, rng, 6, 28, 6)


def dark_slide(rng: np.random.Generator) -> Image.Image:
    return _lines(Image.new("RGB", (960, 540), (20, 24, 40)), rng, 6, 28, 6)


def code(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (800, 600), (30, 30, 30))
    draw = ImageDraw.Draw(image)
    for top in range(10, 590, 17):
        place = (20 + 24 * int(rng.integers(0, 4)), top)
        text = _words(rng, int(rng.integers(1, 8)))
        draw.text(place, text, fill="white", font=ImageFont.load_default(13))
    return image


def table(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (640, 480), "white")
    draw = ImageDraw.Draw(image)
    for row, column in itertools.product(range(14), range(6)):
        left, top = 20 + 100 * column, 30 + 30 * row
        draw.rectangle([left, top, left + 100, top + 30], outline="gray")
        number = str(int(rng.integers(0, 10 ** int(rng.integers(2, 8)))))
        place = (left + 6, top + 6)
        draw.text(place, number, fill="black", font=ImageFont.load_default(14))
    return image


def line_chart(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (640, 480), "white")
    draw = ImageDraw.Draw(image)
    draw.line([(50, 30), (50, 430), (610, 430)], fill="black", width=2)
    for color in ("red", "blue"):
        heights = 230 + np.cumsum(rng.normal(0, 18, 20))
        points = [(60 + 28 * i, float(height)) for i, height in enumerate(heights)]
        draw.line(points, fill=color, width=3)
    return image


def bar_chart(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (640, 480), "white")
    draw = ImageDraw.Draw(image)
    draw.line([(50, 30), (50, 430), (610, 430)], fill="black", width=2)
    for left in range(60, 600, 540 // int(rng.integers(5, 9))):
        height = int(rng.integers(20, 390))
        draw.rectangle([left, 430 - height, left + 50, 429], fill=(40, 80, 160))
    return image


def sheet_music(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (600, 800), "white")
    draw = ImageDraw.Draw(image)
    for top in range(60, 740, 80):
        for line in range(5):
            draw.line([(30, top + 8 * line), (570, top + 8 * line)], fill="black")
        for left in range(60, 560, 22):
            note = top + 4 * int(rng.integers(-1, 9))
            draw.ellipse([left, note, left + 9, note + 7], fill="black")
            draw.line([(left + 9, note + 3), (left + 9, note - 22)], fill="black")
    return image


def scan(rng: np.random.Generator) -> Image.Image:
    """Draws a page, slightly rotated, unevenly lit, with sensor noise."""
    pixels = np.asarray(page(rng)).astype(np.float32)
    height, width = pixels.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-1, 1), 1)
    pixels = cv2.warpAffine(pixels, turn, (width, height), borderValue=(255,) * 3)
    light = np.linspace(rng.uniform(0.75, 0.95), rng.uniform(0.75, 0.95), width)
    noisy = pixels * light[None, :, None] + rng.normal(0, 4, pixels.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


KIND_TO_DRAW: Mapping[str, Draw] = {
    draw.__name__.replace("_", " "): draw
    for draw in (
        *(page, letter, scan, slide, slide_of_a_template, dark_slide),
        *(code, table, line_chart, bar_chart, sheet_music),
    )
}


def resize(rgb: np.ndarray, scale: float) -> np.ndarray:
    size = (round(rgb.shape[1] * scale), round(rgb.shape[0] * scale))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))


def recompress(rgb: np.ndarray, quality: int) -> np.ndarray:
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality)
    return simplejpeg.decode_jpeg(data)


NAME_TO_COPY: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "three quarters, JPEG 50": lambda rgb: recompress(resize(rgb, 0.75), 50),
    "half size": lambda rgb: resize(rgb, 0.5),
    "JPEG 30": lambda rgb: recompress(rgb, 30),
}


def vectors(images: list[np.ndarray]) -> np.ndarray:
    return np.stack([Perceptual().prepare(image) for image in images])


def main() -> None:
    names = ("different, median", "different, highest", *NAME_TO_COPY)
    print(f"| kind | {' | '.join(names)} |\n|{' --- |' * (len(names) + 1)}")
    for kind, draw in KIND_TO_DRAW.items():
        rng = np.random.default_rng(0)
        images = [np.asarray(draw(rng)) for _ in range(N_DOCUMENTS)]
        own = vectors(images)
        others = (own @ own.T)[np.triu_indices(N_DOCUMENTS, 1)]
        copies = [
            np.min(np.sum(own * vectors([copy(image) for image in images]), axis=1))
            for copy in NAME_TO_COPY.values()
        ]
        numbers = (np.median(others), np.max(others), *copies)
        print(f"| {kind} | {' | '.join(f'{n:.2f}' for n in numbers)} |", flush=True)


if __name__ == "__main__":
    main()
