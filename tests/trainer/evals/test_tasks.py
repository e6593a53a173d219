"""Tasks as users run them, on a model whose weights are planted: it knows colors."""

import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.support.planted import COLORS, configured, draw, planted, save, write_words
from trainer import evaluate
from trainer.models import two_tower

FEW_STEPS = ("--set", "n_steps=60", "--set", "learning_rate=0.05")


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny):
    words = write_words(tmp_path_factory.mktemp("words") / "words.model")
    return configured(tiny, words)


@pytest.fixture(scope="module")
def knows_colors(tmp_path_factory, config):
    return save(tmp_path_factory.mktemp("planted"), config, planted(config))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Twice as wide as high."""
    return draw(tmp_path_factory.mktemp("scenes"), n_columns=4)


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """As decoders are shown images."""
    return draw(tmp_path_factory.mktemp("squares"), n_columns=2)


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    """Images of one color each, in a folder of its name."""
    root = tmp_path_factory.mktemp("cards")
    for number, (name, color) in enumerate(itertools.product(COLORS, range(6))):
        shade = np.array(COLORS[name]) * (1 - color / 20)
        split = "train" if color < 4 else "val"
        path = root / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((28, 28, 3), shade, np.uint8)).save(path)
    return root


@pytest.fixture
def measure(capsys, knows_colors):
    def run(task, data, *flags, checkpoint=knows_colors):
        own = ["--checkpoint", checkpoint, "--task", task, "--data", data, *flags]
        evaluate.main([str(flag) for flag in own])
        return json.loads(capsys.readouterr().out)

    return run


def test_results_account_for_every_sample(measure, cards, tmp_path, capsys):
    root = tmp_path / "cards"
    shutil.copytree(cards, root)
    (root / "val" / "red" / "9.heic").write_bytes(b"")
    found = measure("zero_shot_classification", root)
    assert (found["split"], found["n_images"]) == ("named", 6)
    assert found["data"] == {
        "n_found": 19,
        "n_used": 6,
        "left_out": {"ending .heic": 1, "split train": 12},
        "splits": {"test": 6, "train": 12},
        "scored_split": "validation",
    }


def test_a_split_by_hash_is_said_in_the_results_and_on_standard_error(
    measure, cards, tmp_path, capsys
):
    for path in cards.glob("*/*/*.png"):
        target = tmp_path / "cards" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    found = measure("knn_classification", tmp_path / "cards")
    assert found["split"] == "hashed"
    assert found["n_images"] + found["n_training_images"] == 18
    assert found["data"]["n_used"] == found["data"]["n_found"] == 18


@pytest.mark.parametrize(
    ("task", "part", "message"),
    [
        ("knn_classification", "val", "no training images; splits are validation;"),
        ("knn_classification", "train", "no test images; splits are train"),
        ("linear_classification", "val", "no training images; "),
        (
            "zero_shot_classification",
            "train",
            "no images with a label; splits are train",
        ),
    ],
)
def test_one_split_alone_is_refused_where_a_task_needs_another(
    measure, cards, capsys, task, part, message
):
    with pytest.raises(SystemExit) as exit_info:
        measure(task, cards / part)
    errors = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert message in errors.splitlines()[-1]


def test_masks_that_seem_to_count_from_0_are_warned_of(
    measure, scenes, tmp_path, capsys
):
    def counted_from(first):
        root = tmp_path / f"from_{first}"
        shutil.copytree(scenes, root)
        for path in root.glob("masks/**/*.png"):
            mask = np.asarray(Image.open(path))
            classes = np.where(mask == 255, 255, mask - 1 + first)
            Image.fromarray(classes.astype(np.uint8)).save(path)
        return root

    right = measure("zero_shot_segmentation", counted_from(1))
    assert "warnings" not in right["data"]
    wrong = measure("zero_shot_segmentation", counted_from(0))
    (warning,) = wrong["data"]["warnings"]
    assert "is ignored, and value 3, 'blue', occurs nowhere" in warning
    flags = ("--set", "masks_from=0")
    told = measure("zero_shot_segmentation", tmp_path / "from_0", *flags)
    assert told["whole"] == right["whole"]
    assert "warnings" not in told["data"]


def test_the_planted_model_segments_everything_by_name(measure, scenes):
    found = measure("zero_shot_segmentation", scenes)
    assert found["n_images"] == 3
    for mode in ("whole", "windows"):
        assert found[mode]["mean_iou"] == 1
        assert found[mode]["iou_by_class"] == dict.fromkeys(COLORS, 1)
        assert found[mode]["baselines"]["random_mean_iou"] < 0.25


@pytest.mark.slow
def test_a_model_that_knows_nothing_does_not(measure, scenes, tmp_path, config):
    params = two_tower.init_params(config.model, 1)
    untrained = save(tmp_path, config, params)
    found = measure("zero_shot_segmentation", scenes, checkpoint=untrained)
    assert found["whole"]["mean_iou"] < 0.5


def test_fine_grained_retrieval_needs_no_text_encoder(
    measure, cards, tmp_path, config, capsys
):
    params = {"vision": planted(config)["vision"]}
    blind = save(tmp_path, config, params)
    found = measure("fine_grained_retrieval", cards, checkpoint=blind)
    assert (found["n_domains"], found["domains"]["all"]["n_images"]) == (1, 6)
    with pytest.raises(SystemExit) as exit_info:
        measure("zero_shot_classification", cards, checkpoint=blind)
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "no text encoder, expected one for tasks with texts" in message


def test_neighbors_in_training_images_name_the_class(measure, scenes, cards):
    found = measure("knn_classification", cards)
    sizes = {name: found[name] for name in ("n_images", "n_training_images")}
    assert sizes == {"n_images": 6, "n_training_images": 12}
    assert found["n_classes"] == 3
    assert found["cls_1"].keys() == found["mean"].keys() == {"accuracy_k10"}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("zero_shot_segmentation", "8: mask value 9: expected 0 to 3, or 255 for none"),
        ("knn_classification", "no label, expected a text or a whole number"),
        ("retrieval", "no captions, expected some"),
    ],
)
def test_data_that_do_not_fit_exit_with_2_and_one_line(
    measure, scenes, tmp_path, capsys, task, message
):
    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    wrong = np.full((28, 56), 9, np.uint8)
    Image.fromarray(wrong).save(root / "masks/val/8.png")
    with pytest.raises(SystemExit) as exit_info:
        measure(task, root)
    errors = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert errors.count("error: ") == 1
    assert message in errors.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("cocoa=x",), "cocoa: no such data set, expected one of imagenet"),
        (("coco=x",), "x: no file, expected tars"),
        (("tfds:x",), "tfds:x: "),
        (("cards", "--set", "size_px=15"), "size_px=15: expected a multiple of 14"),
        (
            ("cards", "--set", "prompts=x"),
            "prompts='x': expected one of plain, clip, tcl",
        ),
        (
            ("cards", "--set", "steps=1"),
            "no field 'steps' (nearest: n_steps), expected one of weights",
        ),
    ],
)
def test_a_wrong_command_exits_with_2_and_one_line(
    measure, cards, capsys, flags, message
):
    data, *others = flags
    with pytest.raises(SystemExit) as exit_info:
        measure("retrieval", cards if data == "cards" else data, *others)
    errors = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "score"),
    [
        ("linear_segmentation", lambda found: found["mean_iou"] > 0.95),
        ("linear_depth", lambda found: found["mean"]["rmse"] < 1.5),
        ("dpt_depth", lambda found: found["cls_1"]["rmse"] < 1.2),
        ("normals", lambda found: found["cls_1"]["rmse"] < 35),
    ],
)
def test_decoders_learn_what_follows_from_the_color(measure, squares, task, score):
    flags = (*FEW_STEPS, "--set", "dpt_channels=8")
    if task in ("dpt_depth", "normals"):
        flags = ("--set", "n_steps=150", "--set", "learning_rate=0.01", *flags[4:])
    found = measure(task, squares, *flags)
    assert (found["n_images"], found["n_training_images"]) == (3, 8)
    assert score(found), json.dumps(found)


@pytest.mark.slow
def test_two_devices_measure_the_same_and_show_how_far_they_are(
    measure, knows_colors, scenes
):
    flag = "--xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flag}"}
    for task in ("zero_shot_segmentation", "linear_segmentation"):
        own = ["--checkpoint", knows_colors, "--task", task, "--data", scenes]
        command = [sys.executable, "-m", "trainer.evaluate", *map(str, own), *FEW_STEPS]
        done = subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        )
        assert json.loads(done.stdout) == measure(task, scenes, *FEW_STEPS)
        assert "images" in done.stderr


@pytest.mark.slow
def test_a_linear_layer_is_fitted_to_training_images(measure, cards):
    found = measure("linear_classification", cards)
    assert found["n_classes"] == 3
    assert found["cls_1"].keys() == {"accuracy", "l2"}
