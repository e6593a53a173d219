"""The evaluations with texts against plain loops, and their settings."""

import numpy as np
import pytest

from trainer.evals.scores import features, retrieval, zero_shot_classification
from trainer.evaluation_config import EvaluationConfig, PromptSet

RNG = np.random.default_rng(0)


def plain_rank(query, candidates, is_right):
    """Wrong candidates that are at least as similar as the best right one."""
    cosines = [cosine(query, candidate) for candidate in candidates]
    best = max(c for c, right in zip(cosines, is_right, strict=True) if right)
    return sum(
        c >= best and not right for c, right in zip(cosines, is_right, strict=True)
    )


def cosine(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True)) / np.sqrt((x @ x) * (y @ y))


def test_ranks_equal_plain_loops(monkeypatch):
    monkeypatch.setattr(retrieval, "_CHUNK", 4)
    images, texts = RNG.normal(size=(9, 5)), RNG.normal(size=(21, 5))
    owners = np.concatenate([np.arange(9), RNG.integers(0, 9, 12)])
    to_text = retrieval.ranks(images, texts, np.arange(9), owners)
    assert to_text.tolist() == [
        plain_rank(image, texts, owners == i) for i, image in enumerate(images)
    ]
    to_image = retrieval.ranks(texts, images, owners, np.arange(9))
    assert to_image.tolist() == [
        plain_rank(text, images, np.arange(9) == owner)
        for text, owner in zip(texts, owners, strict=True)
    ]


def test_recalls_count_ranks_below_k():
    images = np.eye(12)
    texts = np.eye(12)
    texts[0] = images[0] + 1.5 * images[1]  # nearer to another image
    found = retrieval.recalls(images, texts, np.arange(12))
    assert found["text_to_image"] == pytest.approx(
        {"recall@1": 11 / 12, "recall@5": 1, "recall@10": 1}
    )
    assert found["image_to_text"]["recall@1"] == 1


def test_an_image_is_found_by_any_of_its_texts():
    images = np.eye(2)
    texts = np.array([[-1.0, 0.0], [1.0, 0.1], [0.1, 1.0]])
    found = retrieval.recalls(images, texts, np.array([0, 0, 1]))
    assert found["image_to_text"]["recall@1"] == 1
    assert found["text_to_image"]["recall@1"] == pytest.approx(2 / 3)


def test_features_that_tell_nothing_apart_find_nothing():
    same = np.ones((12, 4))
    found = retrieval.recalls(same, same, np.arange(12))
    assert found["image_to_text"] == found["text_to_image"]
    assert set(found["image_to_text"].values()) == {0.0}
    labels = np.arange(12)
    assert zero_shot_classification.accuracy(same, same, labels) == 0


def test_accuracy_equals_a_plain_loop():
    images, classes = RNG.normal(size=(40, 4)), RNG.normal(size=(5, 4))
    labels = RNG.integers(0, 5, 40)
    n_right = 0
    for image, label in zip(images, labels, strict=True):
        cosines = [cosine(image, one) for one in classes]
        n_right += cosines.index(max(cosines)) == label
    assert zero_shot_classification.accuracy(images, classes, labels) == n_right / 40


def test_a_class_is_the_mean_of_its_normalized_prompts():
    prompts = np.array([[[2.0, 0.0], [0.0, 9.0]]])
    found = zero_shot_classification.class_features(prompts)
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5]])


def test_the_mean_of_both_tokens_counts_them_alike():
    cls = np.array([[[100.0, 0.0], [0.0, 1.0]]])
    found = features.by_token(cls)
    np.testing.assert_allclose(found["mean"], [[0.5, 0.5]])
    np.testing.assert_allclose(found["cls_1"], [[1, 0]])


def test_features_that_are_not_numbers_are_an_error():
    with pytest.raises(ValueError, match="not finite"):
        features.normalize(np.array([[np.nan, 1.0]]))


@pytest.mark.parametrize(("which", "count"), [("plain", 2), ("clip", 7), ("tcl", 9)])
def test_every_name_is_put_into_every_sentence(which, count):
    found = zero_shot_classification.prompts(["cat", "dog"], PromptSet(which))
    assert len(found) == len(set(found)) == 2 * count
    assert all("cat" in sentence for sentence in found[:count])
    assert all("dog" in sentence for sentence in found[count:])


def test_one_image_with_one_text_is_found():
    found = retrieval.recalls(np.ones((1, 3)), np.ones((1, 3)), np.zeros(1, int))
    assert found["image_to_text"] == {"recall@1": 1, "recall@5": 1, "recall@10": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_steps": 0}, "n_steps=0: expected more than 0"),
        ({"size_px": -1}, "size_px=-1: expected 0 or more"),
        ({"masks_from": 2}, "masks_from=2: expected -1, 0 or 1"),
        ({"scored_split": "x"}, "split 'x': expected train"),
        ({"max_depth_m": 0.0}, "max_depth_m=0.0: expected more than min_depth_m=0.001"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**change)
