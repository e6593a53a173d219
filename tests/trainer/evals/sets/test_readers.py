"""Evaluation sets in every form that is read, and what is wrong with some."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.eval_sets import JPEG, PNG, npy, png, read, write_tar, write_tree
from trainer.evals.sets import public_sets, tfds
from trainer.evals.sets.readers import find_source
from trainer.evals.sets.samples import SampleError, deal_split
from trainer.split_names import TEST, TRAIN

MASK = np.arange(32 * 40).reshape(32, 40).astype(np.uint8) % 3


def test_tars_are_read_in_order(tmp_path):
    metadata = {"label": "cat", "captions": {"short": "a", "long": ["b", "c"]}}
    files = {
        "x/0.v2.jpg": JPEG,
        "x/1.jpg": JPEG,
        "x/1.txt": b" text ",
        "x/1.json": json.dumps(metadata).encode(),
        "x/2.PNG": PNG,
        "x/2.json": b'{"captions": ["d", "e"]}',
        "x/3.json": b"{}",
        "x/4.jpg": JPEG,
        "x/4.txt": b" text ",
        "x/4.seg.png": png(MASK),
    }
    write_tar(tmp_path / "b.tar", files)
    write_tar(tmp_path / "val" / "a.tar", {"9.jpg": JPEG})
    found = read(tmp_path)
    assert [(one.key, one.label, one.split) for one in found] == [
        ("x/0.v2", None, None),
        ("x/1", "cat", None),
        ("x/2", None, None),
        ("x/4", None, None),
        ("9", None, TEST),
    ]
    assert [one.captions for one in found] == [
        {},
        {"short": ("a",), "long": ("b", "c")},
        {"caption": ("d", "e")},
        {"caption": ("text",)},
        {},
    ]
    assert {one.to_square(28).shape for one in found} == {(28, 28, 3)}
    np.testing.assert_array_equal(found[3].mask(), MASK)
    assert len(read(tmp_path / "*.tar")) == 4


def test_folders_name_classes_splits_and_domains(tmp_path):
    names = ["train/cat/0.jpg", "val/dog/1.jpg", "val/dog/1.txt", "gallery/cat/2.png"]
    write_tree(tmp_path / "a", dict.fromkeys(names, JPEG) | {names[2]: b"a dog"})
    found = read(tmp_path / "a")
    assert sorted((x.key, x.label, x.domain, x.split) for x in found) == [
        ("gallery/cat/2", "cat", None, "index"),
        ("train/cat/0", "cat", None, "train"),
        ("val/dog/1", "dog", None, "test"),
    ]
    assert [x.captions for x in found if x.captions] == [{"caption": ("a dog",)}]
    write_tree(tmp_path / "b", {"LICENSE.txt": b"not a caption"})
    write_tree(tmp_path / "b", {"cars/query/audi/1.jpg": JPEG, "food/pie/1.jpg": JPEG})
    found = [(x.domain, x.label, x.split) for x in read(tmp_path / "b")]
    assert found == [("cars", "audi", "test"), ("food", "pie", None)]


def test_folders_of_images_have_their_truths_beside_them(tmp_path):
    depth = np.full((32, 40), 1500, np.uint16)
    normals = np.dstack([np.zeros((32, 40)), np.zeros((32, 40)), np.ones((32, 40))])
    files = {
        "images/training/a.jpg": JPEG,
        "annotations/training/a.png": png(MASK),
        "images/validation/b.jpg": JPEG,
        "annotations/validation/b.png": png(MASK),
        "depth/validation/b.png": png(depth),
        "normals/validation/b.npy": npy(normals),
        "classes.json": b'["wall", "sky"]',
        "sceneCategories.txt": b"not a caption",
    }
    write_tree(tmp_path, files)
    source = find_source(str(tmp_path))
    assert source.classes == ("wall", "sky")
    (a,), (b,) = source.of_split(TRAIN), source.of_split(TEST)
    np.testing.assert_array_equal(a.mask(), MASK)
    assert (b.depth() == 1.5).all()
    np.testing.assert_array_equal(b.normals(), normals)
    with pytest.raises(SampleError, match=r"training/a: no depth"):
        a.depth()


def test_tables_hold_bytes_or_the_structs_of_hugging_face(tmp_path):
    table = {
        "__key__": ["a", "b"],
        "image": [{"bytes": JPEG, "path": "a"}, {"bytes": PNG, "path": "b"}],
        "label": [1, 0],
        "captions": [["x", "y"], []],
        "split": ["train", "test"],
        "seg": [png(MASK), None],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    (tmp_path / "classes.json").write_text('["cat", "dog"]')
    a, b = read(tmp_path)
    assert (a.key, a.label, a.split, a.captions) == (
        "a",
        "dog",
        "train",
        {"caption": ("x", "y")},
    )
    assert (b.label, b.split, b.captions) == ("cat", "test", {})
    assert "mask" in a.parts
    assert "mask" not in b.parts
    plain = {"jpg": [JPEG], "label_name": ["cat"], "label": [7]}
    pq.write_table(pa.table(plain), tmp_path / "b.parquet")
    (only,) = read(tmp_path / "b.parquet")
    assert (only.key, only.label) == ("0", "cat")


def test_samples_without_a_split_are_dealt_out_by_their_keys(tmp_path):
    write_tree(tmp_path, {f"cat/{i}.jpg": JPEG for i in range(50)})
    source = find_source(str(tmp_path))
    train, test = list(source.of_split(TRAIN)), list(source.of_split(TEST))
    assert len(train) + len(test) == 50
    assert 3 < len(test) < 20
    assert {deal_split(one.key) for one in test} == {TEST}
    assert len(list(source.not_of_training())) == 50


def test_normals_in_pngs_go_from_minus_1_to_1_and_black_is_unknown(tmp_path):
    pixels = np.zeros((32, 40, 3), np.uint8)
    pixels[0, 0] = (255, 0, 128)
    write_tar(tmp_path / "a.tar", {"0.jpg": JPEG, "0.normals.png": png(pixels)})
    (one,) = read(tmp_path)
    found = one.normals()
    np.testing.assert_allclose(found[0, 0], (1, -1, 128 / 127.5 - 1), atol=1e-6)
    assert not found[1:].any()


def mask_of(files):
    def ask(root):
        write_tar(root / "a.tar", {"0.jpg": JPEG, **files})
        read(root)[0].mask()

    return ask


def reading(files):
    def ask(root):
        write_tar(root / "a.tar", files)
        for one in read(root):
            one.image()

    return ask


LABELS = {"0.jpg": JPEG, "0.json": b'{"label": 2}'}


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (reading({"0.jpg": JPEG, "1.jpg": JPEG[:99]}), r"a\.tar: 1: "),
        (
            reading({"0.jpg": b"something else"}),
            r"a\.tar: 0: starts with .*: expected a",
        ),
        (reading({"0.txt": b"a cat"}), r"a\.tar: 0: captions without an image"),
        (reading({"0.jpg": JPEG, "0.json": b"{"}), r"a\.tar: 0\.json: Expecting"),
        (reading({"0.jpg": JPEG, "0.json": b'{"split": "x"}'}), "split 'x': expected"),
        (mask_of({"0.seg.png": png(MASK[:9])}), "mask of 40x9: expected 40x32"),
        (mask_of({"0.seg.png": PNG}), "mask: expected one channel"),
        (mask_of({"0.mask.npy": npy(MASK - 1.0)}), "mask: expected one channel of 8"),
        (mask_of({}), r"a\.tar: 0: no mask"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(tmp_path, ask, message):
    with pytest.raises(SampleError, match=message):
        ask(tmp_path)


def test_a_label_beyond_the_names_is_named(tmp_path):
    (tmp_path / "classes.json").write_text('["cat", "dog"]')
    write_tar(tmp_path / "a.tar", LABELS)
    with pytest.raises(SampleError, match=r"a\.tar: 0: label 2: expected 0 to 1"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_file_of_another_form_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(SampleError, match=f"{name}: "):
        read(tmp_path)


@pytest.mark.parametrize("place", ["", "none", "*.tar"])
def test_nothing_found_is_an_error(tmp_path, place):
    with pytest.raises(ValueError, match="no file, expected tars"):
        find_source(str(tmp_path / place))


@pytest.mark.parametrize("text", ["{}", "[1]", "["])
def test_names_that_are_no_list_are_an_error(tmp_path, text):
    write_tar(tmp_path / "a.tar", {"0.jpg": JPEG})
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=r"classes.json: .*expected a JSON list"):
        find_source(str(tmp_path))


def test_tensorflow_datasets_are_asked_for_by_name(tmp_path):
    package = pytest.importorskip("tensorflow_datasets")
    features = package.features.FeaturesDict(
        {
            "image": package.features.Image(shape=(None, None, 3)),
            "label": package.features.ClassLabel(names=["cat", "dog"]),
            "captions": package.features.Sequence({"text": package.features.Text()}),
        }
    )
    pixels = [np.full((4, 6, 3), i, np.uint8) for i in range(2)]
    rows = [
        (i, {"image": image, "label": i, "captions": [{"text": "a"}]})
        for i, image in enumerate(pixels)
    ]
    package.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        data_dir=tmp_path,
        features=features,
        split_datasets={"train": rows[:1], "validation": rows[1:]},
    )
    source = find_source(f"tfds:{tmp_path / 'tiny' / '1.0.0'}")
    assert source.classes == ("cat", "dog")
    (train,), (test,) = source.of_split(TRAIN), source.of_split(TEST)
    assert (train.label, test.label) == ("cat", "dog")
    assert test.captions == {"caption": ("a",)}
    assert (test.image() == 1).all()
    with pytest.raises(ValueError, match="tfds:no_such_set: "):
        find_source("tfds:no_such_set")


def test_the_twenty_sets_of_the_papers_have_a_place_to_come_from():
    assert len(public_sets.RECIPES) == 20
    assert sum(name.startswith("uned_") for name in public_sets.RECIPES) == 8
    for recipe in public_sets.RECIPES.values():
        assert recipe.source
        assert (recipe.n_images is None) == (not recipe.counted_by)
    assert len(public_sets.RECIPES["ade150"].classes) == 150
    assert len(public_sets.RECIPES["voc21"].classes) == 21
    assert public_sets.RECIPES["ade20k"].classes[-1] == "flag"


def test_a_set_is_named_before_its_place():
    assert public_sets.split_name("coco=/data/x=1") == ("coco", "/data/x=1")
    assert public_sets.split_name("/data/x=1/*.tar") == ("", "/data/x=1/*.tar")
    with pytest.raises(ValueError, match="cocoa: no such data set, expected one of"):
        public_sets.split_name("cocoa=/data")
    with pytest.raises(ValueError, match="coco: expected a task of retrieval, not"):
        public_sets.check_task("coco", "normals")
    found = public_sets.compare_size("coco", 4)
    assert found == {"name": "coco", "n_images_expected": 5000, "is_whole": False}
    assert public_sets.compare_size("navi", 4)["is_whole"] is None


def test_tensorflow_datasets_are_named_where_they_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    expected = "tfds:mnist: expected the package tensorflow_datasets to be installed"
    with pytest.raises(ValueError, match=expected):
        tfds.open_set("tfds:mnist")
