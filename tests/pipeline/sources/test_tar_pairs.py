"""Tests of members to pairs: what belongs together, and what is told of the rest."""

import itertools
import json
import tarfile

import pytest

from pipeline.config.curation import Limits
from pipeline.sources.shards import read_pairs, read_shard_images
from tests.pipeline.sources.test_shards import (
    errors_of,
    lot_of,
    pairs_of,
    scored,
    write_tar,
)

PHOTO, MASK, TEXT = ("a.jpg", b"photo"), ("a.png", b"mask"), ("a.txt", b"text")
AFTER = [("b.jpg", b"b"), ("b.txt", b"b")]


@pytest.mark.parametrize("order", list(itertools.permutations([PHOTO, MASK, TEXT])))
def test_the_photo_is_taken_wherever_a_mask_lies(tmp_path, order):
    pair, after = pairs_of(write_tar(tmp_path / "a.tar", [*order, *AFTER]))
    assert (pair.image, pair.text, pair.error) == (b"photo", "text", "")
    assert (pair.left_out, after.left_out) == (("a.png",), ())


@pytest.mark.parametrize(
    ("taken", "others"),
    [
        ("jpg", ["jpeg", "png", "webp"]),
        ("jpeg", ["png", "webp", "gif"]),
        ("jfif", ["webp", "png", "tiff"]),
        ("JPG", ["png"]),
        ("png", ["webp", "bmp", "avif"]),
        ("webp", ["gif", "jxl"]),
    ],
)
def test_of_several_images_the_one_of_the_first_extension_counts(
    tmp_path, taken, others
):
    members = [(f"a.{other}", b"other") for other in others]
    members += [(f"a.{taken}", b"taken"), TEXT]
    (pair,) = pairs_of(write_tar(tmp_path / "a.tar", members))
    assert (pair.image, pair.error) == (b"taken", "")
    assert pair.left_out == tuple(f"a.{other}" for other in others)


def test_a_name_that_comes_again_is_a_pair_of_its_own(tmp_path):
    members = [PHOTO, MASK, TEXT, ("a.jpg", b"2"), ("a.png", b"m"), ("a.txt", b"two")]
    pairs = pairs_of(write_tar(tmp_path / "a.tar", members))
    assert [(pair.image, pair.text) for pair in pairs] == [
        (b"photo", "text"),
        (b"2", "two"),
    ]


def test_further_files_of_a_key_are_no_part_of_its_pair(tmp_path):
    further = [("a.seg.png", b"m"), ("a.short.txt", b"s"), ("a.cls", b"7")]
    (pair,) = pairs_of(write_tar(tmp_path / "a.tar", [PHOTO, TEXT, *further]))
    assert (pair.image, pair.text, pair.error) == (b"photo", "text", "")
    assert pair.left_out == ("a.seg.png",)


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (
            ["v1.0_0.jpg", "v1.0_0.txt", "v1.0_1.jpg", "v1.0_1.txt"],
            "no image: its key holds v1.0_0.jpg, v1.0_0.txt, v1.0_1.jpg and 1 more; a "
            "key ends at the first dot of a name",
        ),
        (
            ["photo.final.jpg", "photo.txt"],
            "no image: its key holds photo.final.jpg, photo.txt; a key ends at the "
            "first dot of a name",
        ),
        (["a.jpg", "a.caption"], "no alt text: its key holds a.jpg, a.caption"),
        (["a.npy", "a.txt"], "no image: its key holds a.npy, a.txt"),
        (["a.json"], "no image"),
    ],
)
def test_a_key_without_a_part_says_what_it_holds(tmp_path, names, error):
    members = [(name, b"{}") for name in names]
    found = errors_of(write_tar(tmp_path / "a.tar", [*members, *AFTER]))
    assert found == [(names[0].split(".")[0], error), ("b", "")]


def test_names_without_end_are_shown_in_part(tmp_path):
    members = [(f"a.{i}.{'x' * 150}", b"") for i in range(50)]
    ((_, error),) = errors_of(write_tar(tmp_path / "a.tar", members))
    assert len(error) < 300
    assert "and 47 more" in error


def members_of(key: str) -> dict[str, tuple[str, bytes]]:
    record = json.dumps({"url": f"https://a.org/{key}", "x_robots_tag": "noai"})
    data = {"jpg": key.encode() * 3, "txt": key.encode(), "json": record.encode()}
    return {kind: (f"{key}.{kind}", value) for kind, value in data.items()}


@pytest.mark.parametrize("kinds", list(itertools.permutations(["jpg", "txt", "json"])))
@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_parts_that_lie_apart_are_joined(tmp_path, kinds, tar_format):
    members = [members_of(key)[kind] for kind in kinds for key in "cab"]
    path = write_tar(tmp_path / "a.tar", members, tar_format)
    pairs = pairs_of(path)
    assert [(p.key, p.image, p.text, p.url, p.robots, p.error) for p in pairs] == [
        (key, key.encode() * 3, key, f"https://a.org/{key}", "noai", "")
        for key in "cab"
    ]
    images = read_shard_images(lot_of(path), [scored(pair) for pair in pairs])
    assert list(images) == [pair.image for pair in pairs]


def test_a_part_of_another_pair_is_not_joined(tmp_path):
    members = [PHOTO, TEXT, ("b.jpg", b"b"), ("b.txt", b"b"), ("a.jpg", b"again")]
    pairs = pairs_of(write_tar(tmp_path / "a.tar", members))
    assert [(pair.key, pair.error) for pair in pairs] == [
        *[("a", ""), ("b", ""), ("a", "no alt text")]
    ]


def test_some_parts_may_lie_apart_and_others_be_gone(tmp_path):
    members = [PHOTO, ("b.jpg", b"b"), ("c.jpg", b"c"), ("c.txt", b"c"), TEXT]
    pairs = pairs_of(write_tar(tmp_path / "a.tar", members))
    assert [(pair.key, pair.text, pair.error) for pair in pairs] == [
        *[("a", "text", ""), ("b", "", "no alt text"), ("c", "c", "")]
    ]


def test_a_tar_of_parts_apart_that_is_cut_off_ends_in_one_error(tmp_path):
    members = [members_of(key)[kind] for kind in ("jpg", "txt") for key in "abc"]
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    path = tmp_path / "cut.tar"
    for length in range(0, whole.rindex(b"c.txt"), 97):
        path.write_bytes(whole[:length])
        *_, last = pairs_of(path)
        assert (last.key, last.error[:19]) == ("", "tar cut off at byte")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xef\xbb\xbfa dog", "a dog"),
        (b" a dog\r\n", "a dog"),
        (b"a\r\ndog\r\rin a\n", "a\ndog\n\nin a"),
        (b"a dog\0\0", "a dog"),
        ("größer".encode("utf-16"), "größer"),
        (b"\xfe\xff" + "größer".encode("utf-16-be"), "größer"),
        ("größer".encode("utf-32"), "größer"),
        (b"a\0 \0d\0o\0g\0", "a dog"),
    ],
)
def test_marks_of_an_encoding_are_no_part_of_a_text(tmp_path, data, text):
    path = write_tar(tmp_path / "a.tar", [PHOTO, ("a.txt", data)])
    (pair,) = read_pairs(lot_of(path), Limits())
    assert (pair.text, pair.alt_text, pair.error) == (text, text.encode(), "")


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf", b"\xff\xfe", b"\0\0", b"\r\n"])
def test_marks_alone_are_no_text(tmp_path, data):
    path = write_tar(tmp_path / "a.tar", [PHOTO, ("a.txt", data)])
    assert errors_of(path) == [("a", "no alt text")]


def test_half_a_character_of_utf16_is_an_error(tmp_path):
    path = write_tar(tmp_path / "a.tar", [PHOTO, ("a.txt", b"\xff\xfea")])
    ((_, error),) = errors_of(path)
    assert error == "alt text is not UTF-16-LE: truncated data at byte 2"


@pytest.mark.parametrize(
    "metadata",
    [b"", b"{", b'{"x_robots_tag": "noai"', b"[" * 100_000, b"{" * (5 << 20)],
)
def test_metadata_that_cannot_be_read_is_no_consent(tmp_path, metadata):
    members = [PHOTO, TEXT, ("a.json", metadata), *AFTER]
    pair, after = pairs_of(write_tar(tmp_path / "a.tar", members))
    assert pair.robots.startswith("not understood: ")
    assert (pair.url, pair.error, after.robots) == ("", "", "")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_metadata_may_be_of_any_encoding(tmp_path, encoding):
    record = json.dumps({"x_robots_tag": "noai", "title": "é"}, ensure_ascii=False)
    members = [PHOTO, TEXT, ("a.json", record.encode(encoding))]
    (pair,) = pairs_of(write_tar(tmp_path / "a.tar", members))
    assert pair.robots == "noai"


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (
            {"status": "failed_to_download", "error_message": "HTTP Error 404"},
            "no image: failed_to_download: HTTP Error 404",
        ),
        ({"status": "failed_to_resize"}, "no image: failed_to_resize"),
        (
            {"status": "failed_to_download", "error_message": "x\n" * 900},
            "no image: failed_to_download: " + "x " * 88 + "x...",
        ),
        ({"status": "success", "error_message": None}, "no image"),
    ],
)
def test_a_recorded_failure_is_the_reason_that_there_is_no_image(
    tmp_path, record, error
):
    members = [TEXT, ("a.json", json.dumps(record).encode())]
    assert errors_of(write_tar(tmp_path / "a.tar", members)) == [("a", error)]
