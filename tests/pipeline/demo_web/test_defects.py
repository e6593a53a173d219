"""What is planted: each defect is there, and nothing else is wrong."""

import dataclasses
import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.config.curation import Limits
from pipeline.demo_web import crawl, defects, descriptions
from pipeline.demo_web.drawn_pair import Planted
from pipeline.demo_web.scene import sample_scene
from pipeline.images.decoder import ImageError, decode
from pipeline.records import Pair
from pipeline.selection.rules import BoilerplateAltText

LIMITS = Limits()
PAIR = Pair(b"", "", "", "", b"", "jpeg", 96, 96, 1, 0, "")


def is_readable(image: bytes) -> bool:
    try:
        decode(image, LIMITS)
    except ImageError:
        return False
    return True


def opens_with_pillow(image: bytes) -> bool:
    try:
        Image.open(io.BytesIO(image)).load()
    except (OSError, Image.DecompressionBombError):
        return False
    return True


@pytest.mark.parametrize(
    "planted",
    [
        Planted.TRUNCATED_JPEG,
        Planted.EMPTY_FILE,
        Planted.NOT_AN_IMAGE,
        Planted.DECOMPRESSION_BOMB,
    ],
)
def test_broken_images_open_neither_here_nor_with_pillow(planted, picture, rng):
    image = defects.plant(planted, picture, rng).image
    assert not is_readable(image)
    assert not opens_with_pillow(image)


def test_a_bomb_has_a_right_header_and_few_bytes(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    bomb = defects.decompression_bomb()
    assert Image.open(io.BytesIO(bomb)).size == (60_000, 60_000)
    assert len(bomb) < 10_000


def test_an_animated_gif_has_two_frames_and_the_name_of_a_jpeg(picture, rng):
    pair = defects.plant(Planted.ANIMATED_GIF, picture, rng)
    gif = Image.open(io.BytesIO(pair.image))
    assert (gif.format, gif.n_frames, pair.extension) == ("GIF", 2, "jpg")


def test_a_missing_alt_text_leaves_no_text_anywhere(picture, rng):
    pair = defects.plant(Planted.MISSING_ALT_TEXT, picture, rng)
    files = crawl.pair_members("0", pair)
    assert [name for name, _ in files] == [f"0.{pair.extension}", "0.json"]
    assert json.loads(files[1][1])["caption"] is None


def test_alt_text_that_is_not_utf8_does_not_decode(picture, rng):
    pair = defects.plant(Planted.ALT_TEXT_NOT_UTF8, picture, rng)
    with pytest.raises(UnicodeDecodeError):
        pair.alt_text.decode()


def test_one_pixel_is_readable_and_tiny(picture, rng):
    pair = defects.plant(Planted.ONE_PIXEL, picture, rng)
    assert decode(pair.image, LIMITS).rgb.shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("planted", "mode"), [(Planted.CMYK_JPEG, "CMYK"), (Planted.SIXTEEN_BIT_PNG, "RGB")]
)
def test_unusual_images_show_the_picture(planted, mode, picture, rng):
    pair = defects.plant(planted, picture, rng)
    rgb = decode(pair.image, LIMITS).rgb.astype(int)
    assert np.abs(rgb - picture.rgb).mean() < 8
    assert Image.open(io.BytesIO(pair.image)).mode == mode
    if planted == Planted.SIXTEEN_BIT_PNG:
        data = np.frombuffer(pair.image, np.uint8)
        assert cv2.imdecode(data, cv2.IMREAD_UNCHANGED).dtype == np.uint16


@pytest.mark.parametrize("alt_text", defects.BOILERPLATE)
def test_boilerplate_is_what_the_rule_drops(alt_text):
    assert BoilerplateAltText()(dataclasses.replace(PAIR, alt_text=alt_text))


def test_true_alt_text_is_no_boilerplate(rng):
    for _ in range(20):
        alt_text = descriptions.alt_text(sample_scene(rng), rng)
        pair = dataclasses.replace(PAIR, alt_text=alt_text)
        assert BoilerplateAltText()(pair) is None
