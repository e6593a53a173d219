"""Scores of the evaluations against plain loops, on random and on nasty inputs."""

import math

import numpy as np
import pytest
from scipy import optimize

from trainer.evals.scores import (
    depth,
    errors,
    fine_grained,
    knn,
    linear_classification,
    maps,
    normals,
    segmentation,
)

NAMES = ("a", "b", "c", "d")
LIMITS = (0.001, 10.0)


def rng(number=0):
    return np.random.default_rng(number)


def corners(n, number):
    """Rows of 1 and -1, whose cosines are exact and often equal."""
    return rng(number).choice([-1.0, 1.0], (n, 4))


def cosine(x, y):
    dot, lengths = 0.0, [0.0, 0.0]
    for a, b in zip(x, y, strict=True):
        dot += a * b
        lengths[0] += a * a
        lengths[1] += b * b
    return dot / math.sqrt(lengths[0]) / math.sqrt(lengths[1])


def plain_vote(train, labels, query, k):
    near = sorted(range(len(train)), key=lambda i: (-cosine(train[i], query), i))[:k]
    votes = [0.0] * (max(labels) + 1)
    for i in near:
        votes[labels[i]] += math.exp(cosine(train[i], query) / 0.07)
    return votes.index(max(votes))


@pytest.mark.parametrize("draw", [corners, lambda n, s: rng(s).normal(size=(n, 5))])
def test_k_nearest_neighbors_vote_as_in_a_plain_loop(draw, monkeypatch):
    monkeypatch.setattr(knn, "_N_COSINES", 100)  # several parts
    train, test = draw(30, 1), draw(13, 2)
    labels = rng(3).integers(0, 4, 30)
    found = knn.predictions(train, labels, test)
    assert list(found) == [10, 20]  # no more than there are training images
    for k, predicted in found.items():
        votes = [plain_vote(train, labels.tolist(), query, k) for query in test]
        assert predicted.tolist() == votes


def test_one_training_image_is_everybodys_neighbor():
    one, test = np.ones((1, 3)), rng().normal(size=(4, 3))
    found = knn.accuracies(one, np.array([2]), test, np.array([2, 2, 0, 1]))
    assert found == {"accuracy_k1": 0.5}


def plain_recall(queries, query_labels, index, index_labels, *, is_same):
    n_found = 0
    for i, query in enumerate(queries):
        right, wrong = [-math.inf], [-math.inf]
        for j, other in enumerate(index):
            if not (is_same and i == j):
                is_right = query_labels[i] == index_labels[j]
                (right if is_right else wrong).append(cosine(query, other))
        n_found += max(right) > max(wrong)
    return n_found / len(queries)


@pytest.mark.parametrize("draw", [corners, lambda n, s: rng(s).normal(size=(n, 5))])
def test_recall_of_the_nearest_equals_a_plain_loop(draw, monkeypatch):
    monkeypatch.setattr(fine_grained, "_N_COSINES", 50)
    queries, index = draw(12, 1), draw(20, 2)
    labels, index_labels = rng(3).integers(0, 5, 12), rng(4).integers(0, 4, 20)
    own = queries, labels
    found = fine_grained.recall_at_1(*own, index, index_labels)
    expected = plain_recall(*own, index, index_labels, is_same=False)
    assert found == pytest.approx(expected, abs=1e-6)
    among = fine_grained.recall_at_1_of_others(*own)
    expected = plain_recall(*own, *own, is_same=True)
    assert among == pytest.approx(expected, abs=1e-6)


def test_an_image_does_not_find_itself():
    alone = np.eye(3)
    assert fine_grained.recall_at_1_of_others(alone, np.arange(3)) == 0
    assert fine_grained.recall_at_1_of_others(alone[:1], np.arange(1)) == 0


def test_the_linear_layer_is_the_minimum_that_scipy_finds(monkeypatch):
    monkeypatch.setattr(linear_classification, "_CHUNK", 16)  # the last is filled up
    features, labels = rng(1).normal(size=(40, 3)), rng(2).integers(0, 3, 40)
    is_used = np.arange(40) % 4 > 0
    x, y = features[is_used], labels[is_used]

    def objective(flat):
        kernel, bias = flat[:9].reshape(3, 3), flat[9:]
        logits = x @ kernel + bias
        nats = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
        return nats.mean() + 0.1 / 2 * (kernel**2).sum()

    best = optimize.minimize(objective, np.zeros(12), tol=1e-12)
    layer = linear_classification.fit(features, labels, 3, 0.1, is_used)
    found = np.concatenate([np.ravel(layer.kernel), layer.bias])
    assert objective(found) == pytest.approx(best.fun, abs=1e-6)
    np.testing.assert_allclose(layer.kernel, best.x[:9].reshape(3, 3), atol=2e-3)


@pytest.mark.slow
def test_classes_on_two_sides_are_told_apart_by_a_linear_layer():
    features = rng(1).normal(size=(60, 2)) * (1e3, 1) + (1e4, 0)
    labels = (features[:, 1] > 0).astype(int)
    sets = features[:40], labels[:40], features[40:], labels[40:]
    found = linear_classification.accuracy(*sets)
    assert found["accuracy"] >= 0.95
    shuffled = linear_classification.accuracy(
        sets[0], rng(2).permutation(labels[:40]), *sets[2:]
    )
    assert shuffled["accuracy"] < 0.85


@pytest.mark.parametrize(
    "measure",
    [
        lambda x, y: knn.accuracies(x, y, x, y),
        lambda x, y: linear_classification.accuracy(x, y, x, y),
        fine_grained.recall_at_1_of_others,
        lambda x, y: maps.best_class(x[None], (4, 4)),
    ],
)
def test_features_that_are_not_numbers_are_an_error(measure):
    features = np.array([[1.0, 2.0], [np.nan, 1.0]])
    with pytest.raises(ValueError, match="not finite"):
        measure(features, np.arange(2))


def plain_ious(pairs, n_classes):
    scores = []
    for c in range(n_classes):
        both = union = 0
        for predicted, truth in pairs:
            for p, t in zip(predicted.ravel(), truth.ravel(), strict=True):
                both += t == p == c
                union += t != segmentation.IGNORED and c in (p, t)
        scores.append(both / union if union else math.nan)
    return scores


def test_ious_of_all_images_equal_a_plain_loop():
    pairs = [
        (rng(i).integers(0, 3, (5, 4)), rng(i + 9).integers(-1, 2, (5, 4)))
        for i in range(3)
    ]  # class 2 is predicted and never true; class 3 is neither
    confusion = sum(segmentation.confusion(*pair, 4) for pair in pairs)
    expected = plain_ious(pairs, 4)
    np.testing.assert_allclose(segmentation.ious(confusion), expected, atol=1e-6)
    scores = segmentation.scores(confusion, NAMES)
    assert scores["mean_iou"] == pytest.approx(np.mean(expected[:3]), abs=1e-6)
    assert list(scores["iou_by_class"]) == ["a", "b", "c"]


def test_baselines_are_what_knowing_no_image_scores():
    truth = rng(1).choice(3, (300, 300), p=(0.7, 0.2, 0.1))
    drawn = rng(2).integers(0, 3, truth.shape)
    confusion = segmentation.confusion(drawn, truth, 3)
    baselines = segmentation.baselines(confusion.sum(axis=1))
    drawn_score = np.nanmean(segmentation.ious(confusion))
    assert baselines["random_mean_iou"] == pytest.approx(drawn_score, abs=0.005)
    majority = segmentation.confusion(np.zeros_like(truth), truth, 3)
    score = np.nanmean(segmentation.ious(majority))
    assert baselines["most_frequent_mean_iou"] == pytest.approx(score, abs=1e-6)


def test_masks_without_a_labeled_pixel_have_no_score():
    nothing = segmentation.confusion(np.zeros((2, 2), int), np.full((2, 2), -1), 4)
    with pytest.raises(ValueError, match="no pixel with a class"):
        segmentation.scores(nothing, NAMES)


def test_mask_values_are_classes_by_the_names():
    mask = np.array([[0, 1, 2, 255]], np.uint8)
    assert segmentation.to_classes(mask, ("a", "b")).tolist() == [[-1, 0, 1, -1]]
    found = segmentation.to_classes(mask, ("background", "a", "b"))
    assert found.tolist() == [[0, 1, 2, -1]]
    with pytest.raises(ValueError, match="mask value 2: expected 0 to 1, or 255"):
        segmentation.to_classes(mask, ("background", "a"))


def test_a_pixel_takes_the_first_of_equal_classes():
    assert (
        maps.best_class(np.zeros((2, 2, 3), np.float32), (3, 5)).tolist()
        == [[0] * 5] * 3
    )


def test_maps_are_enlarged_as_in_a_plain_loop():
    cells = rng().normal(size=(3, 4)).astype(np.float32)
    found = maps.enlarge(cells, (7, 10))
    for y in range(7):
        for x in range(10):
            value = plain_bilinear(
                cells, (y + 0.5) * 3 / 7 - 0.5, (x + 0.5) * 0.4 - 0.5
            )
            assert found[y, x] == pytest.approx(value, abs=1e-5)


def plain_bilinear(cells, y, x):
    total = 0.0
    for row in range(-1, len(cells) + 1):
        for column in range(-1, cells.shape[1] + 1):
            weight = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
            inside = np.clip((row, column), 0, np.array(cells.shape) - 1)
            total += weight * cells[tuple(inside)]
    return total


def test_the_depth_error_equals_a_plain_loop_where_the_depth_is_known():
    predicted = rng(1).uniform(0, 10, (3, 4, 5)).astype(np.float32)
    truth = rng(2).uniform(0, 12, (3, 4, 5)).astype(np.float32)
    truth[0, 0] = (np.nan, 0, -1, np.inf, 10)
    truth[1] = 0  # an image of which nothing is known
    by_image, squares = [], []
    for ours, theirs in zip(predicted, truth, strict=True):
        own = [
            (float(p) - float(t)) ** 2
            for p, t in zip(ours.ravel(), theirs.ravel(), strict=True)
            if 0.001 < t <= 10
        ]
        squares += own
        by_image += [math.sqrt(sum(own) / len(own))] if own else []
    images = [depth.error(p, t, LIMITS) for p, t in zip(predicted, truth, strict=True)]
    assert len(by_image) == 2
    assert errors.rmse(images) == pytest.approx(
        {
            "rmse": sum(by_image) / 2,
            "rmse_over_pixels": math.sqrt(sum(squares) / len(squares)),
        },
        abs=1e-6,
    )


@pytest.mark.parametrize(
    ("scale", "is_doubted"),
    [(1, False), (0.5, False), (1e-3, True), (1e3, True), (5, True), (0.03, True)],
)
def test_depth_of_another_unit_is_doubted(scale, is_doubted):
    meters = np.linspace(1, 5, 200, dtype=np.float32).reshape(2, 10, 10)
    meters[0, 0] = 0, np.nan, np.inf, *[0] * 7  # unknown
    doubt = depth.doubt_unit(meters * np.float32(scale), (0.001, 10.0))
    assert ("is it in meters" in doubt) == is_doubted


def test_depth_that_is_unknown_everywhere_is_not_doubted():
    assert depth.doubt_unit(np.zeros((2, 3, 3), np.float32), (0.001, 10.0)) == ""


def test_depth_is_the_mean_of_bins_by_the_positive_part_of_logits():
    logits = rng().normal(size=(2, 256))
    expected = []
    for row in logits:
        weights = [max(x, 0) + 0.001 for x in row]
        bins = [0.001 + i * (10 - 0.001) / 255 for i in range(256)]
        total = sum(w * b for w, b in zip(weights, bins, strict=True))
        expected.append(total / sum(weights))
    np.testing.assert_allclose(
        depth.expected_depth(logits, LIMITS), expected, rtol=1e-5
    )


def test_the_angle_between_normals_equals_a_plain_loop():
    predicted = rng(1).normal(size=(4, 5, 3)).astype(np.float32)
    truth = rng(2).normal(size=(4, 5, 3)).astype(np.float32)
    truth[0, :3] = [(0, 0, 0), (np.nan, 0, 1), (np.inf, 0, 0)]
    predicted[0, 4] = 0
    predicted[1, 0], predicted[1, 1] = truth[1, 0], -truth[1, 1]
    squares = []
    for p, t in zip(predicted.reshape(-1, 3), truth.reshape(-1, 3), strict=True):
        if np.isfinite(t).all() and t.any():
            c = cosine(p.tolist(), t.tolist()) if p.any() else 0
            squares.append(math.degrees(math.acos(max(-1, min(1, c)))) ** 2)
    found = errors.rmse([normals.error(predicted, truth)])
    assert len(squares) == 17
    expected = math.sqrt(sum(squares) / len(squares))
    assert found["rmse"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_predictions_that_are_not_numbers_are_an_error(value):
    truth = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="predictions are not finite"):
        depth.error(np.full((2, 2), value, np.float32), truth, LIMITS)
    with pytest.raises(ValueError, match="predictions are not finite"):
        normals.error(np.full((1, 1, 3), np.nan), np.ones((1, 1, 3)))


def test_truths_without_a_known_pixel_have_no_score():
    nothing = depth.error(np.ones((2, 2)), np.zeros((2, 2)), LIMITS)
    with pytest.raises(ValueError, match="no pixel with a known value"):
        errors.rmse([nothing])


def test_losses_are_0_at_the_truth_and_ignore_what_is_unknown():
    meters = rng(1).uniform(1, 9, (2, 3, 3))
    assert depth.loss(meters, meters, LIMITS) == pytest.approx(0, abs=1e-5)
    unknown = np.where(np.arange(3) == 1, np.nan, meters)
    wild = np.where(np.arange(3) == 1, 5e5, meters * 2)
    expected = float(depth.loss(wild[..., ::2], meters[..., ::2], LIMITS))
    assert depth.loss(wild, unknown, LIMITS) == pytest.approx(expected, abs=1e-5)
    vectors = rng(2).normal(size=(2, 3, 3, 3))
    assert normals.loss(5 * vectors, vectors) == pytest.approx(0, abs=1e-5)
    assert normals.loss(-vectors, vectors) == pytest.approx(2, abs=1e-5)
    assert normals.loss(-vectors, np.zeros_like(vectors)) == 0
