"""Names of classes and captions, out of the fields and files that sets have."""

import json

import numpy as np
import pytest

from tests.support.eval_sets import JPEG, read, write_table, write_tar, write_tree
from trainer.evals import image_tasks
from trainer.evals.sets import captions, label_names
from trainer.evals.sets.label_names import Names
from trainer.evals.sets.readers import find_source
from trainer.evals.sets.samples import SampleError

LISTED = ("red circle", "blue circle", "red square")


def classified(place, classes=""):
    source = find_source(str(place), classes)
    labels = [one.label for one in source.not_of_training("label")]
    return image_tasks.class_candidates(source, labels)


def told_by_features(root):
    feature = {"_type": "ClassLabel", "names": list(LISTED)}
    columns = {"image": [JPEG] * 2, "label": [0, 2]}
    write_table(root / "a.parquet", columns, {"label": feature})


def told_by(name, text):
    def write(root):
        columns = {"image": [JPEG] * 2, "label": [0, 2]}
        write_table(root / "a.parquet", columns)
        (root / name).write_text(text)

    return write


def folders(*names):
    def write(root):
        write_tree(root, {f"{name}/{i}.jpg": JPEG for i, name in enumerate(names)})

    return write


def both(*writers):
    def write(root):
        for one in writers:
            one(root)

    return write


FEATURES = {"features": {"label": {"_type": "ClassLabel", "names": list(LISTED)}}}
LINES = "red circle\nblue circle\n\nred square\n"
SYNSETS = "n00000001 red circle, disc\nn00000002 blue circle\nn00000003 red square, x\n"
INDEX = {"0": ["n00000001", "red_circle"], "1": ["n00000002", "blue_circle"]}
INDEX |= {"2": ["n00000003", "red_square"]}
WORDNET = folders("n00000001", "n00000003")


def file(name, text):
    return lambda root: (root / name).write_text(text)


@pytest.mark.parametrize(
    "write",
    [
        told_by_features,
        told_by("classes.json", json.dumps(LISTED)),
        told_by(
            "classes.json", '{"0": "red circle", "1": "blue circle", "2": "red_square"}'
        ),
        told_by("classes.txt", LINES),
        told_by("classes.txt", "0 red_circle\n1 blue_circle\n2 red_square\n"),
        told_by("dataset_info.json", json.dumps(FEATURES)),
        told_by("dataset_infos.json", json.dumps({"default": FEATURES})),
        told_by("LOC_synset_mapping.txt", SYNSETS),
        told_by("imagenet_class_index.json", json.dumps(INDEX)),
        both(WORDNET, file("LOC_synset_mapping.txt", SYNSETS)),
        both(WORDNET, file("imagenet_class_index.json", json.dumps(INDEX))),
        both(folders("0", "2"), file("classes.json", json.dumps(LISTED))),
        both(folders("000", "002"), file("classes.json", json.dumps(LISTED))),
        both(
            folders("red_circle", "red square"), file("classes.txt", "\n".join(LISTED))
        ),
        both(
            folders("1.red_circle", "3.red_square"),
            file("classes.txt", "1 1.red_circle\n2 2.blue_circle\n3 3.red_square\n"),
        ),
    ],
)
def test_candidates_are_all_classes_that_the_set_names(tmp_path, write):
    write(tmp_path)
    labels, names = classified(tmp_path)
    assert sorted(labels) == ["red circle", "red square"]
    assert tuple(names) == LISTED


def test_the_sets_own_names_give_way_to_a_setting_alone(tmp_path):
    told_by_features(tmp_path)
    (tmp_path / "classes.json").write_text('["a", "b", "c"]')
    assert classified(tmp_path)[0] == ["red circle", "red square"]
    other = tmp_path / "other.json"
    other.write_text('["x", "y", "z"]')
    assert classified(tmp_path, str(other))[0] == ["x", "z"]
    other.write_text('["0", "1", "2"]')  # digits, and somebody says so
    assert classified(tmp_path, str(other))[0] == ["0", "2"]


@pytest.mark.parametrize(
    "names",
    [
        ("0", "1"),
        ("n01440764", "n01443537"),
        ("class_1", "class_2"),
        ("007", "008"),
        ("c0", "c1"),
        ("cat", "12"),
        ("Q42", "Q43"),
    ],
)
def test_numbers_and_ids_are_no_names(tmp_path, names):
    write_tree(tmp_path, {f"{name}/0.jpg": JPEG for name in names})
    with pytest.raises(SampleError, match=r"is a number or an id .*classes\.json"):
        classified(tmp_path)
    feature = {"_type": "ClassLabel", "names": list(names)}
    columns = {"image": [JPEG] * 2, "label": [0, 1]}
    write_table(tmp_path / "t" / "a.parquet", columns, {"label": feature})
    with pytest.raises(SampleError, match="is a number or an id"):
        classified(tmp_path / "t")
    told = tmp_path / "names.json"
    told.write_text(json.dumps(dict(zip(names, ("tench", "goldfish"), strict=True))))
    assert classified(tmp_path / "*" / "*.jpg", str(told)) == (
        ["tench", "goldfish"] if names[0] < names[1] else ["goldfish", "tench"],
        ["tench", "goldfish"],
    )


def test_a_label_that_is_not_among_the_names_is_refused(tmp_path):
    write_tree(tmp_path, {"cat/0.jpg": JPEG, "cow/0.jpg": JPEG})
    (tmp_path / "classes.json").write_text('["cat", "dog"]')
    with pytest.raises(SampleError, match="label 'cow': expected one of the 2 names"):
        classified(tmp_path)


def test_names_that_stand_twice_are_warned_of(tmp_path):
    write_tree(tmp_path, {"crane/0.jpg": JPEG, "cat/0.jpg": JPEG})
    (tmp_path / "classes.json").write_text('["crane", "cat", "crane"]')
    source = find_source(str(tmp_path))
    assert image_tasks.class_candidates(source, ["cat"])[1] == ["crane", "cat"]
    assert list(source.account.lines()) == ["1 names of classes stand twice"]


@pytest.mark.parametrize(
    ("name", "spoken"),
    [
        ("red_circle", "red circle"),
        (" red__circle ", "red circle"),
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("n02085620-Chihuahua", "Chihuahua"),
        ("747-400", "747-400"),
        ("3.5", "3.5"),
        ("mother-in-law", "mother-in-law"),
    ],
)
def test_names_are_spoken_with_spaces(name, spoken):
    assert label_names.spoken_name(name) == spoken


@pytest.mark.parametrize(
    ("label", "name"),
    [
        (1, "b"),
        ("1", "b"),
        ("01", "b"),
        (np.int64(0), "a"),
        (1.0, "b"),
        ("b", "b"),
        (b"a", "a"),
        ("other", "other"),
        (None, None),
        (-1, None),
        ("", None),
        (float("nan"), None),
        ([0, 1], None),
        (True, "b"),
    ],
)
def test_labels_are_names_or_numbers_of_names(label, name):
    assert Names(("a", "b")).name_of(label) == name


@pytest.mark.parametrize("label", [2, "2", 7.0, -2])
def test_a_number_without_a_name_is_refused(label):
    with pytest.raises(ValueError, match=r"label -?\d: expected 0 to 1, by here"):
        Names(("a", "b"), source="here").name_of(label)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classes.json", '{"a": 1}', "expected a JSON list of names, or an object"),
        ("classes.json", "[]", "expected a JSON list of names"),
        ("imagenet_class_index.json", "[1]", "expected an object of lists"),
        ("dataset_info.json", "{", "dataset_info.json: "),
    ],
)
def test_files_of_names_that_hold_none_are_named(tmp_path, name, text, message):
    write_tree(tmp_path, {"cat/0.jpg": JPEG, name: text.encode()})
    with pytest.raises(ValueError, match=message):
        find_source(str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"caption": " a "}, ["a"]),
        ({"caption": ["a", "b"]}, ["a", "b"]),
        ({"captions": ("a", "", " ", None, "b")}, ["a", "b"]),
        (
            {"captions": [{"caption": "a", "id": 1}, {"caption": "b", "id": 2}]},
            ["a", "b"],
        ),
        ({"sentences": [{"raw": "a", "tokens": ["a"], "sentid": 3}]}, ["a"]),
        ({"caption": {"text": "a", "lang": "en"}}, ["a"]),
        ({"captions": np.array(["a", "b"])}, ["a", "b"]),
        ({"captions": [b"a"]}, ["a"]),
        ({"caption": None, "txt": "a"}, ["a"]),
        ({"caption": "", "txt": "a"}, ["a"]),
        ({"captions": [], "caption": "  ", "text": "a"}, ["a"]),
        ({"caption": float("nan"), "alt_text": "a"}, ["a"]),
        ({"captions": {"short": None}, "text": "a"}, ["a"]),
    ],
)
def test_captions_come_in_many_forms(fields, expected):
    found = captions.parse_captions(fields).by_granularity
    assert found == {"caption": tuple(expected)}


def test_captions_by_granularity_lose_their_empty_texts():
    told = {"short": "a", "long": ["b", "", None], "none": [""], "null": None}
    found = captions.parse_captions({"captions": told})
    assert found == ({"short": ("a",), "long": ("b",)}, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"caption": 3}, "caption: 3: expected a text"),
        ({"caption": b"caf\xe9"}, r"caption: b'caf\\xe9': expected a text in UTF-8"),
        ({"captions": ["a", 3]}, "captions: 3: expected a text"),
        ({"captions": [["a"]]}, r"captions: \['a'\]: expected a text"),
        ({"captions": [{"id": 3}]}, "captions: {'id': 3}: expected a text"),
        ({"captions": {"short": 3}}, "captions: 3: expected a text"),
        ({"text": [{"x": "y" * 9999}]}, "text: .{20,60}: expected a text"),
    ],
)
def test_what_is_no_text_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        captions.parse_captions(fields)


def test_the_row_of_what_is_no_text_is_named(tmp_path):
    write_table(tmp_path / "a.parquet", {"image": [JPEG] * 2, "captions": [None, [7]]})
    with pytest.raises(SampleError, match=r"a\.parquet: row 1: captions: 7: expected"):
        read(tmp_path)


def test_captions_and_labels_are_found_whatever_the_case(tmp_path):
    columns = {"image": [JPEG], "TEXT": ["a cat"], "Label": ["cat"]}
    write_table(tmp_path / "a.parquet", columns)
    write_tar(tmp_path / "t" / "a.tar", {"0.jpg": JPEG, "0.cls": b"3\n"})
    (one,) = read(tmp_path / "a.parquet")
    assert (one.captions, one.label) == ({"caption": ("a cat",)}, "cat")
    assert [one.label for one in read(tmp_path / "t")] == ["3"]
