"""Zero-shot segmentation: what the windows cover, and planted models."""

import numpy as np
import pytest

from trainer.evals.scores import segmentation
from trainer.evals.scores import zero_shot_segmentation as zero_shot

PATCH = 14
STRIPES = np.array([[0, 1, 2, 3, 0], [0, 1, 2, 3, 0]])  # a class for each patch
CLASSES = np.random.default_rng(1).normal(size=(4, 8))


def pixels(grid, size=PATCH):
    return grid.repeat(size, 0).repeat(size, 1)


@pytest.mark.parametrize(
    ("side", "starts"),
    [
        (448, [0]),
        (449, [0, 1]),
        (784, [0, 336]),
        (800, [0, 336, 352]),
        (1120, [0, 336, 672]),
    ],
)
def test_windows_cover_a_side_and_the_last_ends_with_it(side, starts):
    found = zero_shot.windows((448, side), 448, zero_shot.stride(448, PATCH))
    assert [columns.start for _, columns in found] == starts
    assert {(rows.start, rows.stop) for rows, _ in found} == {(0, 448)}
    assert {columns.stop - columns.start for _, columns in found} == {448}
    assert found[-1][1].stop == side


def test_the_short_side_is_resized_and_then_rounded_up_to_patches():
    image = np.zeros((100, 151, 3), np.uint8)
    resized = zero_shot.resize_short_side(image, 56)
    assert resized.shape == (56, 84, 3)
    assert zero_shot.resize_short_side(image[:, :99], 56).shape == (56, 56, 3)
    assert zero_shot.round_up_to_patches(image, PATCH).shape == (112, 154, 3)


def test_features_of_the_right_names_score_everything_whole_and_by_windows():
    features, truth = 3 * CLASSES[STRIPES], pixels(STRIPES)
    found = zero_shot.segment(features, CLASSES, truth.shape)
    np.testing.assert_array_equal(found, truth)
    places = zero_shot.windows(truth.shape, 28, zero_shot.stride(28, PATCH))
    parts = [features[:, c.start // PATCH : c.stop // PATCH] for _, c in places]
    shape = {"resized": truth.shape, "shape": truth.shape}
    found = zero_shot.segment_by_windows(parts, places, CLASSES, **shape)
    np.testing.assert_array_equal(found, truth)


def test_windows_average_probabilities_as_in_a_plain_loop():
    rng = np.random.default_rng(3)
    places = zero_shot.windows((4, 6), 4, 2)
    parts = [rng.normal(size=(4, 4, 8)) for _ in places]  # patches of one pixel
    total = np.zeros((4, 6, 4))
    count = np.zeros((4, 6, 1))
    for part, (_, columns) in zip(parts, places, strict=True):
        for y in range(4):
            for x in range(4):
                lengths = np.linalg.norm(part[y, x]) * np.linalg.norm(CLASSES, axis=1)
                powers = np.exp(CLASSES @ part[y, x] / lengths)
                total[y, columns.start + x] += powers / powers.sum()
                count[y, columns.start + x] += 1
    shape = {"resized": (4, 6), "shape": (4, 6)}
    found = zero_shot.segment_by_windows(parts, places, CLASSES, **shape)
    np.testing.assert_array_equal(found, (total / count).argmax(axis=-1))


def test_random_features_score_at_chance():
    rng = np.random.default_rng(2)
    confusion = np.zeros((4, 4), int)
    for _ in range(8):
        truth = pixels(rng.choice(4, (32, 32), p=(0.4, 0.3, 0.2, 0.1)), 4)
        features = rng.normal(size=(32, 32, 8))
        # Names in a new order each time, else the model would have favorites.
        found = zero_shot.segment(features, rng.permutation(CLASSES), truth.shape)
        confusion += segmentation.confusion(found, truth, 4)
    scores = segmentation.scores(confusion, ("a", "b", "c", "d"))
    chance = scores["baselines"]["random_mean_iou"]
    assert scores["mean_iou"] == pytest.approx(chance, abs=0.02)
