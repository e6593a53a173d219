"""Found = used + left out, by reason: links, names, endings, fields."""

import json
import tarfile

import numpy as np
import pytest

from tests.support.eval_sets import (
    JPEG,
    PNG,
    dealt,
    encoded,
    npy,
    png,
    read,
    write_table,
    write_tar,
    write_tree,
)
from trainer.evals import image_tasks
from trainer.evals.sets.readers import find_source
from trainer.evals.sets.samples import SampleError

MASK = np.arange(32 * 40).reshape(32, 40).astype(np.uint8) % 3


def summary(place, kind=""):
    source = find_source(str(place))
    used = list(source.not_of_training(kind))
    found = source.account.summary()
    assert found["n_used"] == len(used)
    assert found["n_found"] == found["n_used"] + sum(found["left_out"].values())
    return found


@pytest.mark.parametrize(
    "stem",
    ["Photo 2026-11-01 10.30.{}", "v1.0_{}", "a.b.c.{}", "scan.{}.final", "J. Doe {}"],
)
@pytest.mark.parametrize("form", ["folder", "tar"])
def test_names_have_dots_and_files_of_a_key_stay_with_it(tmp_path, stem, form):
    files = {}
    for number in ("000", "001"):
        key = stem.format(number)
        own = {"jpg": JPEG, "txt": number.encode(), "seg.png": png(MASK)}
        own |= {"depth.npy": npy(MASK + 1.0), "boxes.json": b"[]"}
        files |= {f"{key}.{ending}": data for ending, data in own.items()}
    if form == "tar":
        write_tar(tmp_path / "set" / "a.tar", files)
    else:
        write_tree(tmp_path / "set", files)
    found = read(tmp_path / "set")
    assert [one.key for one in found] == [stem.format(n) for n in ("000", "001")]
    assert [one.captions for one in found] == [
        {"caption": (n,)} for n in ("000", "001")
    ]
    for one in found:
        np.testing.assert_array_equal(one.mask(), MASK)
        np.testing.assert_array_equal(one.depth(), MASK + 1)
    assert summary(tmp_path / "set")["left_out"] == {}


def test_a_photo_with_a_further_word_keeps_the_files_of_its_key(tmp_path):
    files = {"0.left.jpg": JPEG, "0.txt": b"a", "1.JPG": JPEG, "1.txt": b"b"}
    write_tar(tmp_path / "a.tar", files)
    found = [(one.key, one.captions) for one in read(tmp_path)]
    assert found == [("0.left", {"caption": ("a",)}), ("1", {"caption": ("b",)})]
    write_tar(tmp_path / "a.tar", files | {"0.right.jpg": JPEG})
    write_tar(
        tmp_path / "a.tar", {"0.left.jpg": JPEG, "0.right.jpg": JPEG, "0.txt": b"a"}
    )
    with pytest.raises(SampleError, match="0: captions without an image"):
        read(tmp_path)


def test_links_to_folders_and_files_are_followed(tmp_path):
    write_tree(tmp_path / "real", {"cat/0.jpg": JPEG, "dog/1.jpg": JPEG})
    for part in ("train", "val"):
        (tmp_path / "set" / part).mkdir(parents=True)
        for kind in ("cat", "dog"):
            link = tmp_path / "set" / part / kind
            link.symlink_to(tmp_path / "real" / kind)
    (tmp_path / "set" / "train" / "cat.link").symlink_to("nowhere")
    (tmp_path / "set" / "val" / "above").symlink_to("..")
    (tmp_path / "linked").symlink_to(tmp_path / "set")
    for place in ("set", "linked"):
        assert [len(part) for part in dealt(tmp_path / place)] == [2, 2]
    assert summary(tmp_path / "set")["left_out"] == {
        "broken link": 1,
        "link to a folder above it": 1,
        "split train": 2,
    }


@pytest.mark.parametrize("ending", ["bmp", "gif", "tif", "TIFF", "jfif", "JPEG", "jpe"])
def test_images_of_other_endings_are_read(tmp_path, ending):
    form = {"tif": "tiff", "jfif": "jpeg", "jpe": "jpeg"}.get(ending, ending.lower())
    write_tree(tmp_path / "set", {"cat/0.jpg": JPEG, f"dog/1.{ending}": encoded(form)})
    found = read(tmp_path / "set")
    assert [one.label for one in found] == ["cat", "dog"]
    assert {one.image().shape for one in found} == {(32, 40, 3)}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cat/1.heic", "ending .heic"),
        ("cat/1.AVIF", "ending .avif"),
        ("cat/1.jp2", "ending .jp2"),
        ("cat/notes", "without an ending"),
        ("notes.md", "ending .md"),
        ("cat/.1.jpg", "hidden"),
        ("cat/._0.jpg", "hidden"),
        (".cache/1.jpg", "hidden"),
        ("cat/0.png", "second image of a key"),
        ("cat/0.seg.jpg", "ending .seg.jpg"),
        ("metadata.csv", "ending .csv"),
    ],
)
def test_files_of_a_folder_that_are_no_samples_are_counted(tmp_path, name, reason):
    write_tree(tmp_path / "set", {"cat/0.jpg": JPEG, "dog/0.jpg": JPEG, name: PNG})
    found = summary(tmp_path / "set")
    assert (found["n_found"], found["n_used"]) == (3, 2)
    assert found["left_out"] == {reason: 1}
    source = find_source(str(tmp_path / "set"))
    list(source.not_of_training())
    assert list(source.account.lines()) == [f"1 of 3 left out: 1 {reason}"]


def test_maps_and_images_beside_the_samples_are_counted(tmp_path):
    names = ("images/a.jpg", "masks/a.png", "masks/b.png", "other/c.jpg")
    write_tree(tmp_path / "set", dict.fromkeys(names, PNG))
    found = summary(tmp_path / "set", "mask")
    assert found["left_out"] == {"map without an image": 1, "outside of images": 1}


def test_members_of_a_tar_that_are_no_samples_are_counted(tmp_path):
    files = {"0.jpg": JPEG, "0.json": b"{}", "1.json": b"{}", "2.heic": b"x"}
    write_tar(tmp_path / "a.tar", files | {"./._0.jpg": b"x", "3/.b.jpg": b"x"})
    write_tree(tmp_path, {"a_stats.json": b"{}", "a.parquet": b"", "b.jpg": JPEG})
    assert summary(tmp_path)["left_out"] == {
        "ending .jpg": 1,
        "hidden": 2,
        "no image": 1,
        "ending .heic": 1,
    }


def test_links_in_a_tar_are_read(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.jpg": JPEG})
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for name, kind, target in (
            ("1.jpg", tarfile.LNKTYPE, "0.jpg"),
            ("2.jpg", tarfile.SYMTYPE, "0.jpg"),
            ("3.jpg", tarfile.LNKTYPE, "none.jpg"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    assert [one.image().shape for one in read(tmp_path)] == [(32, 40, 3)] * 3
    assert summary(tmp_path)["left_out"] == {"link or device without a file": 1}


def test_samples_without_what_a_task_needs_are_counted(tmp_path):
    columns = {"image": [JPEG] * 3 + [None], "caption": ["a", "", None, None]}
    columns |= {"label": [3, None, -1, 1], "seg": [None, None, png(MASK), None]}
    write_table(tmp_path / "a.parquet", columns)
    assert summary(tmp_path, "captions")["left_out"] == {
        "no image": 1,
        "without captions": 2,
    }
    assert summary(tmp_path, "mask")["left_out"] == {"no image": 1, "without mask": 2}
    names = {"names": ["a", "b", "c", "d"], "_type": "ClassLabel"}
    write_table(tmp_path / "a.parquet", columns, {"label": names})
    assert summary(tmp_path, "label")["left_out"] == {"no image": 1, "without label": 2}


def test_what_was_left_out_stands_in_the_error_when_nothing_is_left(tmp_path):
    write_tar(tmp_path / "val" / "a.tar", {"0.jpg": JPEG, "1.heic": b""})
    source = find_source(str(tmp_path))
    assert list(source.of_split("train")) == []
    assert str(source.no_samples_error("no training images")).endswith(
        "no training images; splits are validation; 2 of 2 left out: 1 ending .heic, 1"
        " split test"
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image": [{"bytes": None, "path": "x.jpg"}]},
            "0: column image: no bytes",
        ),
        ({"image": ["x.jpg"]}, "row 0: column image: no bytes, and no file x.jpg"),
        ({"image": [[1, 2]]}, r"row 0: column image: \[1, 2\]: expected bytes"),
        ({"picture": [JPEG], "b": [1]}, "columns picture, b: expected one of images"),
    ],
)
def test_a_table_without_images_is_refused(tmp_path, columns, message):
    write_table(tmp_path / "a.parquet", columns)
    with pytest.raises(SampleError, match=message):
        read(tmp_path)


def test_a_table_may_name_files_or_call_its_columns_otherwise(tmp_path):
    write_tree(tmp_path, {"photos/x.jpg": JPEG})
    write_table(
        tmp_path / "a.parquet",
        {"photo": [{"bytes": None, "path": "photos/x.jpg"}], "kind": [1]},
        {
            "photo": {"_type": "Image"},
            "kind": {"_type": "ClassLabel", "names": ["cat", "dog"]},
        },
    )
    (one,) = read(tmp_path)
    assert (one.image().shape, one.label) == ((32, 40, 3), "dog")


@pytest.mark.parametrize("text", ["[1]", '"a"', "7", "[" * 100_000])
def test_json_that_is_no_object_is_named(tmp_path, text):
    write_tar(tmp_path / "a.tar", {"0.jpg": JPEG, "0.json": text.encode()})
    with pytest.raises(SampleError, match=r"a\.tar: 0\.json: "):
        read(tmp_path)


@pytest.mark.parametrize("ending", ["txt", "cls", "json"])
def test_a_file_that_is_no_utf_8_is_named(tmp_path, ending):
    write_tree(tmp_path, {"0.jpg": JPEG, f"0.{ending}": '"caf\xe9"'.encode("latin-1")})
    with pytest.raises(SampleError, match=rf"0\.{ending}: 'utf-8' codec"):
        read(tmp_path)


@pytest.mark.parametrize(
    "label", [1.5, ["cat"], {"name": "cat"}, float("nan"), None], ids=str
)
def test_a_label_that_cannot_be_used_is_named_with_what_was_expected(tmp_path, label):
    write_table(tmp_path / "a.parquet", {"image": [JPEG], "label": [label]})
    samples = image_tasks._expect_labels(find_source(str(tmp_path)).samples())
    with pytest.raises(SampleError, match="row 0: no label, expected a text or a wh"):
        next(samples)


def test_null_in_json_leaves_what_the_place_says(tmp_path):
    told = json.dumps({"split": None, "label": None, "caption": None}).encode()
    files = {"cat/0.jpg": JPEG, "cat/0.json": told, "cat/0.txt": b"a cat"}
    write_tree(tmp_path / "val", files)
    write_tree(tmp_path / "train", files)
    one, other = read(tmp_path)
    assert (one.label, one.split, other.split) == ("cat", "train", "test")
    assert one.captions == {"caption": ("a cat",)}


@pytest.mark.parametrize(
    "depth", [png(MASK), npy(MASK), npy(MASK.astype(np.int8)), png(MASK > 1)]
)
def test_depth_of_8_bits_is_refused(tmp_path, depth):
    ending = "png" if depth.startswith(b"\x89") else "npy"
    write_tar(tmp_path / "a.tar", {"0.jpg": JPEG, f"0.depth.{ending}": depth})
    (one,) = read(tmp_path)
    with pytest.raises(SampleError, match=r"a\.tar: 0: depth of 8 bits, .*expected 16"):
        one.depth()


@pytest.mark.parametrize("kind", ["c8", "U4", "S4", "M8[s]"])
def test_depth_that_is_no_number_is_refused(tmp_path, kind):
    depth = np.ones((32, 40), int).astype(kind)
    write_tar(tmp_path / "a.tar", {"0.jpg": JPEG, "0.depth.npy": npy(depth)})
    (one,) = read(tmp_path)
    with pytest.raises(SampleError, match=r"a\.tar: 0: depth of type .*: expected"):
        one.depth()


@pytest.mark.parametrize(
    "depth",
    [
        png(MASK.astype(np.uint16) * 1000),
        npy(MASK.astype(np.uint16) * 1000),
        npy(MASK.astype(np.int32) * 1000),
        npy(MASK.astype(np.float16)),
        npy(MASK.astype(np.float64)),
    ],
)
def test_depth_of_more_bits_is_in_meters(tmp_path, depth):
    ending = "png" if depth.startswith(b"\x89") else "npy"
    write_tar(tmp_path / "a.tar", {"0.jpg": JPEG, f"0.depth.{ending}": depth})
    (one,) = read(tmp_path)
    np.testing.assert_allclose(one.depth(), MASK)


@pytest.mark.parametrize("data", [JPEG, b"", b"something"])
def test_a_map_of_another_format_is_named(tmp_path, data):
    write_tar(tmp_path / "a.tar", {"0.jpg": JPEG, "0.depth.png": data})
    (one,) = read(tmp_path)
    with pytest.raises(SampleError, match=r"0: depth: expected a PNG or \.npy, not"):
        one.depth()
