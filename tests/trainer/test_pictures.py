"""The command that draws pictures, on the model that knows colors."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.support.planted import COLORS, configured, draw, planted, save, write_words
from tools.chromium import browser, executable
from trainer import pictures
from trainer.visuals import overlays

KINDS = ("features", "classes", "neighbors", "attention")


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny):
    words = write_words(tmp_path_factory.mktemp("words") / "words.model")
    return configured(tiny, words)


@pytest.fixture(scope="module")
def knows_colors(tmp_path_factory, config):
    return save(tmp_path_factory.mktemp("planted"), config, planted(config))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("scenes"), n_columns=4)


def run(checkpoint, data, output, *flags):
    own = ["--checkpoint", checkpoint, "--data", data, "--output", output, *flags]
    pictures.main([str(flag) for flag in own])
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory, knows_colors, scenes):
    output = tmp_path_factory.mktemp("drawn") / "pictures"
    return run(knows_colors, scenes, output, "--n-images", 2)


def test_every_image_has_a_picture_of_each_kind_and_a_place_on_the_page(folder):
    names = [f"{number:02d}-{kind}.png" for number in range(2) for kind in KINDS]
    assert {path.name for path in folder.iterdir()} == {*names, "index.html"}
    text = (folder / "index.html").read_text()
    assert [text.count(f'alt="{name}"') for name in names] == [1] * len(names)
    assert text.count("data:image/png;base64,") == len(names)


def test_the_planted_model_paints_every_pixel_with_its_own_color(folder):
    """Photo, what is found and what is true, side by side; both are the same."""
    image = np.asarray(Image.open(folder / "00-classes.png"))
    photo, found, true = (image[:168, x : x + 336] for x in (0, 342, 684))
    np.testing.assert_array_equal(found, true)
    palette = overlays.palette(3)
    for number, color in enumerate(COLORS.values()):
        own = (photo == color).all(axis=-1)
        expected = overlays.overlay(photo, np.full(photo.shape[:2], number), palette)
        np.testing.assert_array_equal(found[own], expected[own])


@pytest.mark.slow
def test_the_same_command_draws_the_same(folder, knows_colors, scenes, tmp_path):
    again = run(knows_colors, scenes, tmp_path / "again", "--n-images", 2)
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_photos_of_a_glob_are_drawn_with_the_names_of_the_command(
    knows_colors, tmp_path
):
    hostile = "<b>\u202e&.png"
    folder = tmp_path / "long" / ("name" * 25)
    folder.mkdir(parents=True)
    for number, name in enumerate((hostile, "b.png")):
        rgb = np.full((20, 30, 3), [*COLORS.values()][number], np.uint8)
        Image.fromarray(rgb).save(folder / name)
    names = ("--class-names", "red", "green")
    output = run(knows_colors, f"{folder}/*.png", tmp_path / "out", *names)
    text = (output / "index.html").read_text()
    assert "&lt;b&gt;[U+202E]&amp;.png" in text
    assert "<b>" not in text
    assert "Zero-shot segmentation: green 100%." in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--class-names", "one"), "1 classes: expected 2 to 254"),
        (("--n-images", "0"), "--n-images 0: expected 1 or more"),
        (("--set", "size_px=15"), "size_px=15: expected a multiple of 14"),
    ],
)
def test_a_wrong_command_exits_with_2_and_one_line(
    knows_colors, scenes, tmp_path, capsys, flags, message
):
    with pytest.raises(SystemExit) as exit_info:
        run(knows_colors, scenes, tmp_path / "out", *flags)
    errors = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_places_that_cannot_be_meant_exit_with_2(
    knows_colors, scenes, tmp_path, capsys
):
    with pytest.raises(SystemExit):
        run(knows_colors, "nowhere/*.jpg", tmp_path / "out")
    assert "nowhere/*.jpg: no file, expected tars" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(knows_colors, scenes, ".")
    assert "--output=.: exists, expected a new folder" in capsys.readouterr().err


def test_a_broken_photo_exits_with_2_and_names_it(knows_colors, tmp_path, capsys):
    file = io.BytesIO()
    Image.new("RGB", (30, 30)).save(file, "png")
    (tmp_path / "cut.png").write_bytes(file.getvalue()[:40])
    with pytest.raises(SystemExit) as exit_info:
        run(knows_colors, tmp_path, tmp_path / "out")
    assert exit_info.value.code == 2
    assert "cut: PNG: truncated, its end" in capsys.readouterr().err.splitlines()[-1]


def test_without_names_or_a_text_encoder_there_are_no_classes(
    config, scenes, tmp_path, capsys
):
    blind = save(tmp_path / "blind", config, {"vision": planted(config)["vision"]})
    output = run(blind, scenes, tmp_path / "out", "--n-images", 1)
    kinds = {path.stem.partition("-")[2] for path in output.glob("*.png")}
    assert kinds == {*KINDS} - {"classes"}
    with pytest.raises(SystemExit):
        run(blind, scenes, tmp_path / "no", "--class-names", "a", "b")
    assert "no text encoder, expected one" in capsys.readouterr().err


@pytest.mark.browser
@pytest.mark.skipif(executable() is None, reason="no Chromium is installed")
def test_the_page_shows_all_pictures_under_its_own_policy(folder, tmp_path):
    with browser(tmp_path) as opened:
        opened.open(folder / "index.html")
        widths = "[...document.images].map((image) => image.naturalWidth)"
        found = opened.run(widths)
        assert len(found) == 2 * len(KINDS)
        assert min(found) > 100
        assert opened.run("getComputedStyle(document.images[0]).display") == "block"
        assert opened.said == []
