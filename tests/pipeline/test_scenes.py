"""Tests of the drawn web: equal bytes, true texts and masks, and what is planted."""

import collections
import dataclasses
import io
import json
import pathlib
import re
import tarfile

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import scenes
from pipeline.config.curation import ImageTextSource, Limits
from pipeline.demo_web import defects, descriptions
from pipeline.demo_web.defects import Copy, Picture, Planted, Transform
from pipeline.demo_web.scene import class_id, sample_scene
from pipeline.demo_web.translations import LANGUAGES, translated
from pipeline.images.decoder import ImageError, decode
from pipeline.models.language import FastText
from pipeline.records import UNREADABLE, Pair
from pipeline.selection.rules import BoilerplateAltText
from pipeline.sources.shards import Unit, read_pairs

LIMITS = Limits()
WEB = scenes.Web(n_pairs=300, rng_seed=3, n_evaluation=8, n_seeds=2)
SMALL = scenes.Web(n_pairs=60, rng_seed=5, n_evaluation=2, n_seeds=2)
PAIR = Pair(b"", "", "", "", b"", "jpeg", 96, 96, 1, 0, "")


@pytest.fixture(scope="module")
def web_folder(tmp_path_factory) -> pathlib.Path:
    return write(WEB, tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def truth(web_folder) -> list[dict[str, str]]:
    return pq.read_table(web_folder / "truth.parquet").to_pylist()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def picture(rng) -> Picture:
    return defects.sample_picture(rng)


def write(web: scenes.Web, folder: pathlib.Path) -> pathlib.Path:
    scenes.clear(folder)
    scenes.write(web, folder)
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


def opens_with_pillow(image: bytes) -> bool:
    try:
        Image.open(io.BytesIO(image)).load()
    except (OSError, Image.DecompressionBombError):
        return False
    return True


# The whole web


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
    assert scenes.draw_pair(other, 0).image != scenes.draw_pair(SMALL, 0).image


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
        for pair in read_pairs(Unit(source, str(path)), LIMITS)
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
        one = scenes.draw_pair(WEB, index[original["key"]])
        other = scenes.draw_pair(WEB, index[row["key"]])
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


# What is true of scenes


def test_texts_and_masks_name_the_objects_and_the_largest():
    for seed in range(20):
        picture = defects.sample_picture(np.random.default_rng(seed))
        pairs = [obj.pair for obj in picture.scene.objects]
        captions = descriptions.captions(picture.scene)
        named = descriptions.named_pairs(captions["detailed"])
        assert sorted(named) == sorted(pairs)
        ids, n_px = np.unique(picture.mask[picture.mask > 0], return_counts=True)
        assert set(ids) == {class_id(*pair) for pair in pairs}
        assert ids[n_px.argmax()] == class_id(*named[0])
        assert scenes.largest_class(picture.scene) == " ".join(named[0])
        assert captions["short"] == named[0][1]


def test_sizes_and_aspects_are_in_range():
    shapes = [
        defects.sample_picture(np.random.default_rng(seed)).mask.shape
        for seed in range(40)
    ]
    assert all(96 <= min(shape) <= 160 for shape in shapes)
    assert all(max(shape) / min(shape) <= 1.52 for shape in shapes)
    assert 2 <= sum(height != width for height, width in shapes) <= 20


def test_mismatched_alt_text_shares_nothing_with_the_picture(rng):
    for _ in range(20):
        scene = sample_scene(rng)
        named = descriptions.named_pairs(defects.other_scenes_alt_text(scene, rng))
        largest = descriptions.by_visible_area(scene)[0]
        assert named
        assert not set(named) & {obj.pair for obj in scene.objects}
        assert named[0][0] != largest.color
        assert named[0][1] != largest.shape


def test_alt_text_of_a_mirrored_copy_is_that_of_the_mirrored_scene(picture, rng):
    pair = defects.near_copy(picture, Copy("", Transform.MIRRORED, 0), rng)
    largest = picture.scene.objects.index(
        descriptions.by_visible_area(picture.scene)[0]
    )
    assert pair.scene.objects[largest].cx == 1 - picture.scene.objects[largest].cx
    rgb = decode(pair.image, LIMITS).rgb.astype(int)
    assert np.abs(rgb - picture.rgb[:, ::-1]).mean() < 10


@pytest.mark.parametrize(
    ("transform", "low", "high"),
    [
        (Transform.RESIZED, 0.35, 2.26),
        (Transform.CROPPED, 0.78, 0.82),
        (Transform.RECOMPRESSED, 1, 1),
        (Transform.BRIGHTNESS, 1, 1),
    ],
)
def test_transforms_change_the_area_as_they_should(transform, low, high, picture, rng):
    rgb = defects.transformed(picture.rgb, transform, rng)
    assert low <= rgb.size / picture.rgb.size <= high


def test_equal_transforms_of_one_image_differ_in_bytes(picture, rng):
    copies = [Copy("", Transform.CROPPED, i) for i in range(5)]
    images = {defects.near_copy(picture, copy, rng).image for copy in copies}
    assert len(images) == 5


# Defects


@pytest.mark.parametrize(
    "planted",
    [
        Planted.TRUNCATED_JPEG,
        Planted.EMPTY_FILE,
        Planted.NOT_AN_IMAGE,
        Planted.DECOMPRESSION_BOMB,
    ],
)
def test_broken_images_open_neither_here_nor_with_pillow(planted, picture, rng):
    image = defects.plant(planted, picture, rng).image
    assert not is_readable(image)
    assert not opens_with_pillow(image)


def test_a_bomb_has_a_right_header_and_few_bytes(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    bomb = defects.decompression_bomb()
    assert Image.open(io.BytesIO(bomb)).size == (60_000, 60_000)
    assert len(bomb) < 10_000


def test_an_animated_gif_has_two_frames_and_the_name_of_a_jpeg(picture, rng):
    pair = defects.plant(Planted.ANIMATED_GIF, picture, rng)
    gif = Image.open(io.BytesIO(pair.image))
    assert (gif.format, gif.n_frames, pair.extension) == ("GIF", 2, "jpg")


def test_a_missing_alt_text_leaves_no_text_anywhere(picture, rng):
    pair = defects.plant(Planted.MISSING_ALT_TEXT, picture, rng)
    files = scenes.pair_members("0", pair)
    assert [name for name, _ in files] == [f"0.{pair.extension}", "0.json"]
    assert json.loads(files[1][1])["caption"] is None


def test_alt_text_that_is_not_utf8_does_not_decode(picture, rng):
    pair = defects.plant(Planted.ALT_TEXT_NOT_UTF8, picture, rng)
    with pytest.raises(UnicodeDecodeError):
        pair.alt_text.decode()


def test_one_pixel_is_readable_and_tiny(picture, rng):
    pair = defects.plant(Planted.ONE_PIXEL, picture, rng)
    assert decode(pair.image, LIMITS).rgb.shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("planted", "mode"), [(Planted.CMYK_JPEG, "CMYK"), (Planted.SIXTEEN_BIT_PNG, "RGB")]
)
def test_unusual_images_show_the_picture(planted, mode, picture, rng):
    pair = defects.plant(planted, picture, rng)
    rgb = decode(pair.image, LIMITS).rgb.astype(int)
    assert np.abs(rgb - picture.rgb).mean() < 8
    assert Image.open(io.BytesIO(pair.image)).mode == mode
    if planted == Planted.SIXTEEN_BIT_PNG:
        data = np.frombuffer(pair.image, np.uint8)
        assert cv2.imdecode(data, cv2.IMREAD_UNCHANGED).dtype == np.uint16


@pytest.mark.parametrize("alt_text", defects.BOILERPLATE)
def test_boilerplate_is_what_the_rule_drops(alt_text):
    assert BoilerplateAltText()(dataclasses.replace(PAIR, alt_text=alt_text))


def test_true_alt_text_is_no_boilerplate(rng):
    for _ in range(20):
        alt_text = descriptions.alt_text(sample_scene(rng), rng)
        pair = dataclasses.replace(PAIR, alt_text=alt_text)
        assert BoilerplateAltText()(pair) is None


# Languages


def test_every_word_of_every_language_has_a_place(rng):
    for language in LANGUAGES:
        text = translated(sample_scene(rng), language)
        assert not re.search(r"[{}]", text)


def test_translations_are_detected_as_their_language(rng):
    detector = FastText()
    drawn = [sample_scene(rng) for _ in range(25)]
    for language in LANGUAGES:
        texts = [translated(scene, language) for scene in drawn]
        found = [answer.code for answer in detector.detect(texts)]
        assert found.count(language) >= 24, (language, found)


def test_english_alt_text_is_detected_as_english(rng):
    texts = [descriptions.alt_text(sample_scene(rng), rng) for _ in range(50)]
    found = [answer.code for answer in FastText().detect(texts)]
    assert found.count("en") >= 47


# Command line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n-pairs", "0"], "n_pairs=0: expected 1 <= n_pairs <= 100000"),
        (["--n-pairs", "100001"], "n_pairs=100001: expected"),
        (["--n-pairs", "9", "--rng-seed", "-1"], "rng_seed=-1: expected 0 or more"),
        (["--n-pairs", "many"], "argument --n-pairs: invalid int value: 'many'"),
        ([], "the following arguments are required: --n-pairs"),
        (["--n-pairs", "9", "--wrong"], "unrecognized arguments: --wrong"),
    ],
)
def test_a_wrong_command_exits_with_2_and_one_line(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        scenes.main(["--output", str(tmp_path), *flags])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path, capsys):
    stranger = tmp_path / "crawl" / "thesis.txt"
    stranger.parent.mkdir()
    stranger.write_text("years of work")
    (tmp_path / "truth.parquet").write_text("older")
    with pytest.raises(SystemExit) as exit_info:
        scenes.main(["--output", str(tmp_path), "--n-pairs", "1"])
    assert exit_info.value.code == 2
    assert "but it holds crawl/thesis.txt\n" in capsys.readouterr().err
    assert sorted(contents(tmp_path)) == ["crawl/thesis.txt", "truth.parquet"]


def test_a_file_as_output_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        scenes.main(["--output", str(tmp_path / "file"), "--n-pairs", "1"])
    assert capsys.readouterr().err.endswith("file: expected a folder\n")


def test_an_earlier_output_is_replaced_as_a_whole(tmp_path):
    tiny = scenes.Web(n_pairs=3, rng_seed=0, n_evaluation=1, n_seeds=1)
    write(tiny, tmp_path)
    stale = tmp_path / "crawl" / "crawl-00007.tar"
    stale.write_bytes(b"")
    write(tiny, tmp_path)
    assert not stale.exists()
