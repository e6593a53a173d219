"""The drawn web: equal bytes, and what is planted in it."""

import collections
import dataclasses
import io
import json
import pathlib
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config.curation import ImageTextSource, Limits
from pipeline.demo_web import crawl, defects, descriptions
from pipeline.demo_web.near_copies import Transform
from pipeline.demo_web.scene import class_id
from pipeline.images.decoder import ImageError, decode
from pipeline.records import UNREADABLE
from pipeline.sources.shards import Shard, read_pairs

LIMITS = Limits()
WEB = crawl.Web(n_pairs=300, rng_seed=3, n_evaluation=8, n_seeds=2)
SMALL = crawl.Web(n_pairs=60, rng_seed=5, n_evaluation=2, n_seeds=2)


@pytest.fixture(scope="module")
def web_folder(tmp_path_factory) -> pathlib.Path:
    return write(WEB, tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def truth(web_folder) -> list[dict[str, str]]:
    return pq.read_table(web_folder / "truth.parquet").to_pylist()


def write(web: crawl.Web, folder: pathlib.Path) -> pathlib.Path:
    crawl.clear(folder)
    crawl.write(web, folder)
    return folder


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def members(folder: pathlib.Path, glob: str) -> dict[str, bytes]:
    name_to_data = {}
    for path in sorted(folder.glob(glob)):
        with tarfile.open(path) as tar:
            name_to_data |= {m.name: tar.extractfile(m).read() for m in tar}
    return name_to_data


def is_readable(image: bytes) -> bool:
    try:
        decode(image, LIMITS)
    except ImageError:
        return False
    return True


def test_equal_flags_give_equal_bytes(tmp_path):
    first = contents(write(SMALL, tmp_path / "a"))
    assert contents(write(SMALL, tmp_path / "b")) == first
    assert sorted(first) == [
        "crawl/crawl-00000.tar",
        "evaluation/evaluation-00000.tar",
        "seeds/seeds-00000.tar",
        "truth.parquet",
    ]
    other = dataclasses.replace(SMALL, rng_seed=6, n_pairs=5)
    assert crawl.draw_pair(other, 0).image != crawl.draw_pair(SMALL, 0).image


def test_tar_headers_hold_no_time_and_no_user(web_folder):
    with tarfile.open(web_folder / "crawl" / "crawl-00001.tar") as tar:
        header = tar.getmembers()[0]
        assert tar.pax_headers == {}
    assert (header.mtime, header.uid, header.uname) == (0, 0, "")


def test_shares_are_as_planned_and_spread(truth):
    planted = collections.Counter(row["planted"] for row in truth)
    assert len(truth) == 300
    assert planted["mismatched_alt_text"] == 24
    assert planted["other_language"] == 36
    assert planted["boilerplate_alt_text"] == 12
    assert planted["exact_duplicate"] == 15
    assert planted["near_copy"] == 18
    assert planted["off_topic"] == 15
    assert {planted[kind] for kind in defects.BROKEN} == {1, 2}
    assert planted["none"] == 168
    assert {row["planted"] for row in truth if row["shard"] == "crawl-00001"} > {
        "none",
        "other_language",
    }


def test_the_pipeline_reads_all_pairs_and_refuses_exactly_the_unreadable(
    web_folder, truth
):
    source = ImageTextSource("web", f"{web_folder}/crawl/*.tar")
    pairs = [
        pair
        for path in sorted((web_folder / "crawl").iterdir())
        for pair in read_pairs(Shard(source, str(path)), LIMITS)
    ]
    assert [pair.key for pair in pairs] == [row["key"] for row in truth]
    for pair, row in zip(pairs, truth, strict=True):
        is_unreadable = bool(pair.error) or not is_readable(pair.image)
        assert is_unreadable == (row["expected"] == UNREADABLE), row


def test_metadata_is_that_of_img2dataset(web_folder, truth):
    name_to_data = members(web_folder, "crawl/*.tar")
    for row in truth[:20]:
        record = json.loads(name_to_data[f"{row['key']}.json"])
        assert list(record) == [
            *("key", "url", "caption", "width", "height", "original_width"),
            *("original_height", "sha256", "status", "error_message", "exif"),
        ]
        assert (record["key"], record["status"]) == (row["key"], "success")


def test_exact_duplicates_repeat_the_bytes_of_an_earlier_clean_pair(truth):
    index = {row["key"]: i for i, row in enumerate(truth)}
    duplicates = [row for row in truth if row["planted"] == "exact_duplicate"]
    is_same_text = set()
    for row in duplicates:
        original = truth[index[row["duplicate_of"]]]
        assert original["planted"] == "none"
        assert index[original["key"]] < index[row["key"]]
        one = crawl.draw_pair(WEB, index[original["key"]])
        other = crawl.draw_pair(WEB, index[row["key"]])
        assert (one.image, one.extension) == (other.image, other.extension)
        is_same_text.add(one.alt_text == other.alt_text)
    assert is_same_text == {True, False}


def test_no_other_readable_images_are_equal(web_folder, truth):
    name_to_data = members(web_folder, "crawl/*.tar")
    image = {n.split(".")[0]: d for n, d in name_to_data.items() if is_image_name(n)}
    alone = [
        image[row["key"]]
        for row in truth
        if row["expected"] not in (UNREADABLE, "exact_duplicate")
    ]
    assert len(set(alone)) == len(alone)


def is_image_name(name: str) -> bool:
    return name.endswith((".jpg", ".png", ".webp"))


def test_near_copies_cycle_through_transforms_of_evaluation_images(truth, web_folder):
    copies = [row for row in truth if row["planted"] == "near_copy"]
    assert {row["transform"] for row in copies} == set(Transform)
    evaluation = members(web_folder, "evaluation/*.tar")
    assert all(f"{row['duplicate_of']}.jpg" in evaluation for row in copies)


def test_clean_scenes_hold_a_label_captions_and_an_exact_mask(web_folder):
    name_to_data = members(web_folder, "evaluation/*.tar")
    assert len(name_to_data) == 4 * WEB.n_evaluation
    record = json.loads(name_to_data["evaluation-00001.json"])
    captions = record["captions"]
    assert list(captions) == ["short", "medium", "detailed"]
    assert name_to_data["evaluation-00001.txt"].decode() == captions["medium"]
    pairs = descriptions.named_pairs(captions["detailed"])
    assert record["label"] == " ".join(pairs[0])
    mask = np.asarray(Image.open(io.BytesIO(name_to_data["evaluation-00001.seg.png"])))
    assert set(np.unique(mask)) - {0} == {class_id(*pair) for pair in pairs}
    image = decode(name_to_data["evaluation-00001.jpg"], LIMITS).rgb
    assert image.shape[:2] == mask.shape == (record["height"], record["width"])
