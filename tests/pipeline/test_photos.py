"""Photos of one's own, packed into shards that pipeline and evaluations read."""

import json
import tarfile

import pytest

from pipeline import photos
from pipeline.config.curation import ImageTextSource, Limits
from pipeline.sources.shards import list_shards, read_pairs
from tests.support.tiny_run import bytes_of, encoded
from trainer.evals.sets import readers


@pytest.fixture
def folder(tmp_path):
    """Twelve photos, one of them in a folder of its own, and a file of another kind."""
    root = tmp_path / "photos"
    (root / "2024").mkdir(parents=True)
    for number in range(11):
        (root / f"{number}.png").write_bytes(encoded((number, 7, 9)))
    (root / "2024" / "x.v2.JPG").write_bytes(encoded((99, 7, 9), format="JPEG"))
    (root / "movie.gif").write_bytes(b"GIF89a")
    return root


NAMES = [f"{number}.png" for number in range(11)] + ["2024/x.v2.JPG"]


def pack(folder, captions, output, *flags: str) -> None:
    arguments = ["--images", folder, "--captions", captions, "--output", output]
    photos.main([*map(str, arguments), *flags])


def write_csv(path, rows=None):
    rows = rows or [f'{name},"a photo, {name}"' for name in NAMES]
    path.write_text("\n".join(["file_name,caption", *rows]) + "\n")
    return path


def pairs_of(folder) -> dict[str, str]:
    """File name to alt text, as the pipeline reads them."""
    source = ImageTextSource("web", f"{folder}/*.tar")
    found = [p for lot in list_shards(source) for p in read_pairs(lot, Limits())]
    assert not any(pair.error for pair in found)
    return {pair.url: pair.text for pair in found}


def test_every_photo_is_either_curated_or_held_out(tmp_path, folder, capsys):
    captions = write_csv(tmp_path / "captions.csv")
    pack(folder, captions, tmp_path / "data", "--held-out", "0.5")
    crawl, held_out = (pairs_of(tmp_path / "data" / part) for part in photos.PARTS)
    assert crawl.keys() | held_out.keys() == set(NAMES)
    assert not crawl.keys() & held_out.keys()
    assert crawl
    assert held_out
    assert all(text == f"a photo, {name}" for name, text in crawl.items())
    assert f"crawl: {len(crawl)} photos" in capsys.readouterr().out


def test_which_photos_are_held_out_hangs_on_their_names(tmp_path, folder):
    captions = write_csv(tmp_path / "a.csv")
    backwards = write_csv(tmp_path / "b.csv", captions.read_text().splitlines()[:0:-1])
    pack(folder, captions, tmp_path / "one")
    pack(folder, backwards, tmp_path / "two")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_none_may_be_held_out(tmp_path, folder):
    captions = write_csv(tmp_path / "captions.csv")
    pack(folder, captions, tmp_path / "data", "--held-out", "0")
    assert pairs_of(tmp_path / "data" / "crawl").keys() == set(NAMES)
    assert list((tmp_path / "data" / "held_out").iterdir()) == []


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        ("0.001", "warning: held_out: no photo, as there are only 12;"),
        ("0.999", "warning: crawl: no photo, as there are only 12;"),
        ("0", ""),
        ("0.5", ""),
    ],
)
def test_a_part_without_photos_is_warned_of(tmp_path, folder, capsys, share, expected):
    captions = write_csv(tmp_path / "captions.csv")
    pack(folder, captions, tmp_path / "data", "--held-out", share)
    error = capsys.readouterr().err
    assert error.startswith(expected)
    assert error.count("--held-out") == bool(expected)


def test_a_shard_has_so_many_photos(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(photos, "PHOTOS_PER_SHARD", 5)
    pack(folder, write_csv(tmp_path / "c.csv"), tmp_path / "data", "--held-out", "0")
    shards = sorted((tmp_path / "data" / "crawl").iterdir())
    assert [shard.name for shard in shards] == [f"photos-0000{i}.tar" for i in range(3)]
    with tarfile.open(shards[1]) as tar:
        assert tar.getnames()[:3] == [
            "000000005.png",
            "000000005.txt",
            "000000005.json",
        ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.csv", "image,caption\n0.png,one\n0.png,two\n"),
        ("c.txt", "\ufefffile,text\n0.png,one\n0.png,two\n"),
        ("c.json", json.dumps({"0.png": ["one", " two "]})),
        ("c.json", json.dumps([{"file": "0.png", "captions": ["one", "two"]}])),
        (
            "c.jsonl",
            '{"path": "0.png", "text": "one"}\n\n{"path": "0.png", "text": "two"}',
        ),
    ],
)
def test_a_photo_may_have_several_captions(tmp_path, folder, name, content):
    captions = tmp_path / name
    captions.write_text(content)
    pack(folder, captions, tmp_path / "data", "--held-out", "0")
    assert pairs_of(tmp_path / "data" / "crawl") == {"0.png": "one"}
    (sample,) = readers.find_source(str(tmp_path / "data" / "crawl")).samples()
    assert sample.captions == {"caption": ("one", "two")}


def test_what_is_left_out_is_told(tmp_path, folder, capsys):
    rows = ["0.png,one", "1.png,", "none.png,two", "movie.gif,three"]
    pack(folder, write_csv(tmp_path / "c.csv", rows), tmp_path / "data")
    last = capsys.readouterr().out.splitlines()[-1]
    expected = "left out: 3, such as 1.png: expected files ending in .jpg, .jpeg"
    assert last.startswith(expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected at least one caption"),
        ("file_name,words\n0.png,a\n", "file_name, words: expected a column caption"),
        ("picture,caption\n0.png,a\n", "line 1: picture, caption: expected a column"),
        ("file,caption\nx.png,a\n", "expected photos that"),
        ("file,caption\n0.png\n", "line 2: 1 fields, expected 2 as in the header"),
    ],
)
def test_a_table_that_cannot_be_meant_is_named(
    tmp_path, folder, capsys, content, message
):
    captions = tmp_path / "captions.csv"
    captions.write_text(content)
    assert message in error_of(capsys, folder, captions, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.json", "3", "expected a list of objects, or an object of names and"),
        ("c.json", "[3]", "c.json, entry 1: 3: expected an object"),
        ("c.json", "{", "c.json, line 1: not JSON: Expecting property name"),
        ("c.jsonl", "a", "c.jsonl, line 1: not JSON: Expecting value"),
        ("c.json", '{"0.png": 3}', "expected a file name, and texts as its caption"),
    ],
)
def test_json_of_something_else_is_named(
    tmp_path, folder, capsys, name, content, message
):
    captions = tmp_path / name
    captions.write_text(content)
    assert message in error_of(capsys, folder, captions, tmp_path / "data")


def test_wrong_flags_are_named(tmp_path, folder, capsys):
    captions = write_csv(tmp_path / "captions.csv")
    error = error_of(capsys, folder, captions, tmp_path / "x", "--held-out", "1")
    assert error == "error: --held-out 1.0: expected 0 <= share < 1"
    error = error_of(capsys, folder, captions, tmp_path)
    assert error == f"error: --output {tmp_path}: exists, expected a new folder"
    assert "No such file" in error_of(capsys, folder, tmp_path / "none.csv", "x")


def error_of(capsys, *arguments) -> str:
    """The one line of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        pack(*arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line
