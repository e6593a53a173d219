"""The evaluations against plain loops."""

import io
import json
import tarfile

import numpy as np
import pytest
import tiny_export

from trainer.evals import classification, features, retrieval, samples

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
    assert classification.accuracy(same, same, labels) == 0


def test_accuracy_equals_a_plain_loop():
    images, classes = RNG.normal(size=(40, 4)), RNG.normal(size=(5, 4))
    labels = RNG.integers(0, 5, 40)
    n_right = 0
    for image, label in zip(images, labels, strict=True):
        cosines = [cosine(image, one) for one in classes]
        n_right += cosines.index(max(cosines)) == label
    assert classification.accuracy(images, classes, labels) == n_right / 40


def test_a_class_is_the_mean_of_its_normalised_prompts():
    prompts = np.array([[[2.0, 0.0], [0.0, 9.0]]])
    found = classification.class_features(prompts)
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5]])


def test_the_mean_of_both_tokens_counts_them_alike():
    cls = np.array([[[100.0, 0.0], [0.0, 1.0]]])
    found = features.by_token(cls)
    np.testing.assert_allclose(found["mean"], [[0.5, 0.5]])
    np.testing.assert_allclose(found["cls_1"], [[1, 0]])


def test_features_that_are_not_numbers_are_an_error():
    with pytest.raises(ValueError, match="not finite"):
        features.normalise(np.array([[np.nan, 1.0]]))


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


IMAGE = tiny_export.encoded(tiny_export.picture(0))
PNG = tiny_export.encoded(tiny_export.picture(1), "png")


def test_samples_are_read_from_tars_in_order(tmp_path):
    metadata = {"label": "cat", "captions": {"short": "a", "long": ["b", "c"]}}
    files = {
        "x/0.v2.jpg": IMAGE,
        "x/1.jpg": IMAGE,
        "x/1.txt": b" text ",
        "x/1.json": json.dumps(metadata).encode(),
        "x/2.PNG": PNG,
        "x/2.json": b'{"captions": ["d", "e"]}',
        "x/3.txt": b"no image",
        "x/4.jpg": IMAGE,
        "x/4.txt": b" text ",
    }
    write_tar(tmp_path / "b.tar", files)
    write_tar(tmp_path / "a.tar", {"9.jpg": IMAGE})
    found = list(samples.read(samples.find_tars(str(tmp_path)), 28))
    assert {image.shape for image, _ in found} == {(28, 28, 3)}
    assert [truth for _, truth in found] == [
        samples.Truth({}, None),
        samples.Truth({"short": ("a",), "long": ("b", "c")}, "cat"),
        samples.Truth({"caption": ("d", "e")}, None),
        samples.Truth({"caption": ("text",)}, None),
    ]


def test_a_sample_that_cannot_be_read_is_named(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.jpg": IMAGE, "1.jpg": IMAGE[:99]})
    with pytest.raises(samples.SampleError, match=r"a\.tar: 1: "):
        list(samples.read(samples.find_tars(str(tmp_path)), 28))


def test_a_file_that_is_no_tar_is_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"something else")
    with pytest.raises(samples.SampleError, match=r"a\.tar: "):
        list(samples.read(samples.find_tars(str(tmp_path / "*.tar")), 28))


@pytest.mark.parametrize("pattern", ["", "none", "*.tar"])
def test_nothing_found_is_an_error(tmp_path, pattern):
    with pytest.raises(ValueError, match="no file, expected tars"):
        samples.find_tars(str(tmp_path / pattern))
