"""Export against TensorFlow's own reading, and what a run leaves behind."""

import collections
import dataclasses
import hashlib
import io
import json
import math
import re
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import records
from pipeline.captioning.flag_stage import Flag
from pipeline.config.captions import CaptionQuality
from pipeline.config.curation import ExportConfig, ImageTextSource, Limits
from pipeline.config.prompts import prompt_hash
from pipeline.config.selection import MinScore, SelectionConfig
from pipeline.engine.caption_tables import CaptionTables
from pipeline.engine.lot_plan import singles
from pipeline.export import lot_shards, samples, stage, webdataset
from pipeline.export.completeness import is_complete, stale_lots
from pipeline.export.publishing import publish
from pipeline.export.shard_formats import TFRECORD, WEBDATASET
from pipeline.export.stage import Export
from pipeline.images import decoder as images
from pipeline.records import DropReason, content_hash, sample_id
from pipeline.sources import shards as sources
from pipeline.storage import files
from pipeline.storage.tables import to_table
from tests.support.tiny_run import (
    LONG,
    SHORT,
    Row,
    bytes_of,
    encoded,
    make_run,
    plain_rows,
    run_stage,
    write_captions,
)

TWO_A_SHARD = ExportConfig(samples_per_shard=2)
FEWER = SelectionConfig(alignment=MinScore(0.9))
MORE = SelectionConfig(alignment=MinScore(0.1))
LOTS = {"a": plain_rows(3), "b": plain_rows(2, first=10)}


def captioned_run(root, stem_to_rows, **changes):
    run = make_run(root, stem_to_rows, **changes)
    write_captions(run, stem_to_rows, run.config.granularities)
    return run


def export(run, lots=None, shard_format=TFRECORD):
    """Writes the lots that are to be done, and the manifest, as the command does."""
    stale = set(stale_lots(run, shard_format))
    lots = [lot for lot in lots or run.lots if lot in stale]
    counters = run_stage(Export(run, shard_format), lots) if lots else {}
    return {**counters, **publish(run, shard_format)}


def manifest_of(run):
    return json.loads(Path(TFRECORD.path(run.root), "manifest.json").read_text())


def samples_of(run):
    """All samples by random access through the indexes."""
    found = []
    for shard in manifest_of(run)["shards"]:
        data = Path(TFRECORD.path(run.root), shard["name"]).read_bytes()
        index = Path(TFRECORD.path(run.root), shard["name"] + ".index").read_bytes()
        for offset, length in np.frombuffer(index, records.INDEX_DTYPE):
            found.append(records.parse_sample(data[offset : offset + length]))
    return found


def mtimes(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}


def test_tensorflow_reads_what_random_access_reads(tmp_path):
    rows = [Row(encoded((1, 2, 3)), "Ein Fahrrad \N{BICYCLE}", seeds=("x", "y"))]
    run = captioned_run(tmp_path, {"a": [*rows, *plain_rows(2)]}, export=TWO_A_SHARD)
    export(run)
    features = {
        "sample_id": tf.io.FixedLenFeature([], tf.string),
        "image": tf.io.FixedLenFeature([], tf.string),
        "image_format": tf.io.FixedLenFeature([], tf.string),
        "width": tf.io.FixedLenFeature([], tf.int64),
        "height": tf.io.FixedLenFeature([], tf.int64),
        "alt_text": tf.io.FixedLenFeature([], tf.string),
        "alignment_score": tf.io.FixedLenFeature([], tf.float32),
        "source": tf.io.FixedLenFeature([], tf.string),
        "seeds": tf.io.VarLenFeature(tf.string),
        "captions/short": tf.io.FixedLenSequenceFeature([], tf.string, True),
        "captions/long": tf.io.VarLenFeature(tf.string),
    }
    names = [shard["name"] for shard in manifest_of(run)["shards"]]
    folder = TFRECORD.path(run.root)
    dataset = tf.data.TFRecordDataset([f"{folder}/{name}" for name in names])
    by_tensorflow = [
        records.Sample(
            sample_id=parsed["sample_id"].numpy(),
            image=parsed["image"].numpy(),
            image_format=parsed["image_format"].numpy().decode(),
            width=int(parsed["width"]),
            height=int(parsed["height"]),
            alt_text=parsed["alt_text"].numpy().decode(),
            captions={
                "long": _texts(parsed["captions/long"].values),
                "short": _texts(parsed["captions/short"]),
            },
            alignment_score=float(parsed["alignment_score"]),
            source=parsed["source"].numpy().decode(),
            seeds=_texts(parsed["seeds"].values),
        )
        for payload in dataset
        for parsed in [tf.io.parse_single_example(payload, features)]
    ]
    assert by_tensorflow == samples_of(run)
    image = encoded((1, 2, 3))
    assert by_tensorflow[0] == records.Sample(
        sample_id=sample_id(image, "Ein Fahrrad \N{BICYCLE}".encode()),
        image=image,
        image_format="png",
        width=12,
        height=8,
        alt_text="Ein Fahrrad \N{BICYCLE}",
        captions={"long": ("describe en 1 2 3",), "short": ("cap en 1 2 3",)},
        alignment_score=0.25,
        source="web",
        seeds=("x", "y"),
    )


def _texts(values):
    return tuple(text.decode() for text in values.numpy())


def test_shards_of_a_lot_are_full_but_the_last_and_follow_the_order_of_lots(tmp_path):
    run = captioned_run(tmp_path, LOTS, export=TWO_A_SHARD)
    counters = export(run)
    assert counters == {"shards_written": 3, "samples_written": 5}
    assert [sample.alt_text for sample in samples_of(run)] == [
        f"text {number}" for number in (0, 1, 2, 10, 11)
    ]
    shards = manifest_of(run)["shards"]
    assert [shard["n_samples"] for shard in shards] == [2, 1, 2]
    first, second = (lot.base for lot in run.lots)
    lots_and_numbers = [(first, 0), (first, 1), (second, 0)]
    for shard, (base, number) in zip(shards, lots_and_numbers, strict=True):
        pattern = rf"train-{base}-{number:05d}-[0-9a-f]{{12}}\.tfrecord"
        assert re.fullmatch(pattern, shard["name"])
    for shard in shards:
        data = Path(TFRECORD.path(run.root), shard["name"]).read_bytes()
        assert shard["n_bytes"] == len(data)
        assert shard["sha256"] == hashlib.sha256(data).hexdigest()


def test_the_manifest_counts_what_was_read_kept_and_written(tmp_path):
    dropped = dataclasses.replace(plain_rows(1, 50)[0], outcome=DropReason.LANGUAGE)
    unreadable = Row(b"", outcome=records.UNREADABLE)
    rows = [*plain_rows(3), dropped, unreadable]
    run = captioned_run(tmp_path, {"a": rows})
    export(run)
    found = manifest_of(run)
    no_drop = dict.fromkeys(map(str, DropReason), 0)
    assert found["ledger"] == {
        "read": 5,
        "kept": 3,
        "unreadable": 1,
        "dropped": no_drop | {"language": 1},
        "evaluation": {},
        "seeds": {},
    }
    assert found["schema_version"] == records.SCHEMA_VERSION
    assert found["version"] == records.VERSION
    assert found["granularities"] == ["short", "long"]
    assert found["n_samples"] == 3
    assert found["n_without_granularity"] == {"short": 0, "long": 0}
    assert found["config"] == repr(run.config)
    assert found["fingerprints"]["decisions"] == run.pool_fingerprint
    assert found["fingerprints"]["captions"] == {
        granularity.name: run.granularity_fingerprint(granularity)
        for granularity in (SHORT, LONG)
    }


def test_two_runs_and_any_order_of_lots_give_the_same_bytes(tmp_path):
    first = captioned_run(tmp_path, LOTS, export=TWO_A_SHARD)
    second = dataclasses.replace(first, root=str(tmp_path / "second"))
    shutil.copytree(first.root, second.root)
    export(first)
    export(second, second.lots[::-1])
    assert len(bytes_of(TFRECORD.path(first.root))) == 9
    assert bytes_of(TFRECORD.path(first.root)) == bytes_of(TFRECORD.path(second.root))


def test_an_export_again_writes_nothing(tmp_path):
    run = captioned_run(tmp_path, LOTS, export=TWO_A_SHARD)
    export(run)
    before = mtimes(TFRECORD.path(run.root))
    assert stale_lots(run) == []
    assert export(run) == {}
    assert mtimes(TFRECORD.path(run.root)) == before


@pytest.mark.parametrize(
    ("suffix", "n_written"),
    [
        (".tfrecord.index", 2),
        pytest.param(".tfrecord", 1, marks=pytest.mark.slow),
        pytest.param(".json", 1, marks=pytest.mark.slow),
        pytest.param("manifest.json", 0, marks=pytest.mark.slow),
    ],
)
def test_an_export_that_is_killed_goes_on_where_it_was(
    tmp_path, monkeypatch, suffix, n_written
):
    run = captioned_run(tmp_path, LOTS, export=TWO_A_SHARD)
    export(run)
    undisturbed = bytes_of(TFRECORD.path(run.root))
    shutil.rmtree(TFRECORD.path(run.root))
    with monkeypatch.context() as patched:
        die_at_write(patched, suffix, n_written)
        with pytest.raises(Exception, match="killed"):
            export(run)
    assert not Path(TFRECORD.path(run.root), "manifest.json").exists()
    there = list(Path(TFRECORD.path(run.root)).glob("*.tfrecord"))
    for shard in there:
        assert shard.with_name(f"{shard.name}.index").exists()
    counters = export(run)
    assert counters.get("shards_written", 0) == 3 - len(there)
    assert bytes_of(TFRECORD.path(run.root)) == undisturbed


def die_at_write(monkeypatch, suffix, n_before):
    """Whoever writes a file of that name after `n_before` others ends there."""
    written = []

    def or_die(act):
        def act_or_die(*arguments):
            path = next(str(x) for x in arguments if str(x).endswith(suffix))
            written.append(path)
            if len(written) > n_before:
                raise OSError("killed")
            return act(*arguments)

        return lambda *arguments: (
            act_or_die(*arguments)
            if any(str(x).endswith(suffix) for x in arguments[:2])
            else act(*arguments)
        )

    for name in ("write", "publish", "create", "replace"):
        monkeypatch.setattr(files, name, or_die(getattr(files, name)))


def test_another_selection_removes_what_is_not_in_it(tmp_path):
    run = captioned_run(tmp_path, LOTS, export=TWO_A_SHARD, selection=MORE)
    export(run)
    fewer = {"a": LOTS["a"][:2], "b": LOTS["b"]}
    out = dataclasses.replace(LOTS["a"][2], outcome=DropReason.LOW_ALIGNMENT)
    fewer["a"] = [*fewer["a"], out]
    folder = Path(TFRECORD.path(run.root))
    for suffix in ("", ".index", ".json", ".host-1-2.tmp"):  # of earlier versions
        (folder / f"train-00000-of-00003.tfrecord{suffix}").touch()
    (folder / f"train-web-00000-00000-{12 * '0'}.tfrecord.index").touch()
    (folder / "manifest.json.host-1-2.tmp").touch()
    (folder / "lots" / "web-00007-0a1b.json").touch()
    (folder / "notes.txt").touch()
    run = captioned_run(tmp_path, fewer, export=TWO_A_SHARD, selection=FEWER)
    export(run)
    names = [shard["name"] for shard in manifest_of(run)["shards"]]
    assert len(names) == 2
    expected = {n + suffix for n in names for suffix in ("", ".index")}
    expected |= {f"lots/{lot.name}.json" for lot in run.lots}
    assert set(bytes_of(folder)) == expected | {"manifest.json", "notes.txt"}
    assert [s.alt_text for s in samples_of(run)] == [
        f"text {number}" for number in (0, 1, 10, 11)
    ]


def test_nothing_is_removed_before_the_manifest_is_another_one(tmp_path, monkeypatch):
    run = captioned_run(tmp_path, LOTS, export=TWO_A_SHARD)
    export(run)
    folder = TFRECORD.path(run.root)
    before = bytes_of(folder)
    changed = dataclasses.replace(run.config, export=ExportConfig(samples_per_shard=3))
    run = dataclasses.replace(run, config=changed)
    with monkeypatch.context() as patched:
        die_at_write(patched, "manifest.json", 0)
        with pytest.raises(Exception, match="killed"):
            export(run)
    lots = {name for name in before if name.startswith("lots/")}
    after = bytes_of(folder)
    assert {n: after[n] for n in before.keys() - lots} == {
        n: before[n] for n in before.keys() - lots
    }
    removed = []

    def remove_or_die(folder, names):
        assert all(len(s.captions) == 2 for s in samples_of(run))  # of the new set
        removed.extend(names)
        raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(files, "delete", remove_or_die)
        with pytest.raises(Exception, match="killed"):
            export(run)
    gone = [name for name in removed if not name.endswith(".index")]
    assert removed == [*gone, *[f"{name}.index" for name in gone]]
    export(run)
    assert not set(removed) & set(bytes_of(folder))


def test_only_the_lot_whose_samples_changed_is_written_again(tmp_path):
    run = captioned_run(tmp_path, LOTS, export=TWO_A_SHARD)
    export(run)
    before = mtimes(TFRECORD.path(run.root))
    table = next(Path(run.captions(LONG)).glob(f"{run.lots[1].base}.*.parquet"))
    table.unlink()
    assert stale_lots(run) == [run.lots[1]]
    assert export(run) == {
        "shards_written": 1,
        "samples_written": 2,
        "files_removed": 2,
    }
    after = mtimes(TFRECORD.path(run.root))
    of_first = {path: time for path, time in before.items() if "-00001-" in path.name}
    assert len(of_first) == 2
    assert of_first.items() <= after.items()


def test_inputs_that_change_no_sample_keep_the_shards(tmp_path):
    run = captioned_run(tmp_path, LOTS, export=TWO_A_SHARD)
    export(run)
    shards = {
        p: t for p, t in mtimes(TFRECORD.path(run.root)).items() if p.suffix != ".json"
    }
    lot = run.lots[0]
    table = run.decisions.read(lot.name)
    values = pa.array([0.5] * table.num_rows)
    at = table.schema.get_field_index("value")
    run.decisions.replace(lot.name, table.set_column(at, "value", values), {})
    assert stale_lots(run) == [lot]
    assert export(run) == {"shards_skipped": 2}
    now = mtimes(TFRECORD.path(run.root))
    folders = {path for path in shards if path.is_dir()}
    assert {p: now[p] for p in shards if p not in folders} == {
        p: t for p, t in shards.items() if p not in folders
    }
    assert is_complete(run)


@pytest.mark.parametrize("suffix", ["", pytest.param(".index", marks=pytest.mark.slow)])
def test_a_file_that_is_lost_is_written_again(tmp_path, suffix):
    run = captioned_run(tmp_path, LOTS, export=TWO_A_SHARD)
    export(run)
    before = bytes_of(TFRECORD.path(run.root))
    name = manifest_of(run)["shards"][1]["name"]
    Path(TFRECORD.path(run.root), name + suffix).unlink()
    assert not is_complete(run)
    assert export(run)["shards_written"] == 1
    assert bytes_of(TFRECORD.path(run.root)) == before


def test_a_receipt_that_is_lost_or_damaged_is_written_again(tmp_path):
    run = captioned_run(tmp_path, LOTS, export=TWO_A_SHARD)
    export(run)
    before = bytes_of(TFRECORD.path(run.root))
    lots = Path(TFRECORD.path(run.root), "lots")
    first, second = (lots / f"{lot.name}.json" for lot in run.lots)
    first.unlink()
    second.write_text('{"inputs": 7}')
    with pytest.raises(ValueError, match="expected a receipt of every lot, but 2 have"):
        publish(run)
    assert export(run) == {"shards_skipped": 3}
    assert bytes_of(TFRECORD.path(run.root)) == before


def test_an_export_is_complete_until_something_changes(tmp_path):
    run = captioned_run(tmp_path, LOTS, granularities=(SHORT,))
    assert not is_complete(run)
    export(run)
    assert is_complete(run)
    smaller = dataclasses.replace(run.config, export=ExportConfig(max_side_px=4))
    assert not is_complete(dataclasses.replace(run, config=smaller))
    assert not is_complete(dataclasses.replace(run, lots=run.lots[:1]))
    next(Path(run.captions(SHORT)).glob("*.parquet")).unlink()
    assert not is_complete(run)


def test_samples_without_a_required_granularity_stay_out_and_are_counted(tmp_path):
    rows = plain_rows(4)
    broken = dataclasses.replace(rows[1], image=b"\xff\xd8\xff broken")
    some = [dataclasses.replace(row, outcome=DropReason.LANGUAGE) for row in rows[2:]]
    fewer = {"a": [rows[0], broken, *some]}
    captioned_run(tmp_path, fewer, granularities=(LONG,), selection=FEWER)
    required = ExportConfig(required_granularities=("short",))
    run = captioned_run(
        tmp_path, fewer, granularities=(SHORT,), selection=FEWER, export=required
    )
    all_kept = {"a": [rows[0], broken, *rows[2:]]}
    run = make_run(tmp_path, all_kept, selection=MORE, export=required)
    write_captions(run, all_kept, (SHORT,))
    export(run)
    found = manifest_of(run)
    assert found["ledger"]["kept"] == 4
    assert found["n_samples"] == 3
    assert found["n_without_granularity"] == {"short": 1, "long": 3}
    assert [sample.captions for sample in samples_of(run)] == [
        {"long": ("describe en 0 7 9",), "short": ("cap en 0 7 9",)},
        {"short": ("cap en 2 7 9",)},
        {"short": ("cap en 3 7 9",)},
    ]
    (shard,) = found["shards"]
    dataset = tf.data.TFRecordDataset(f"{TFRECORD.path(run.root)}/{shard['name']}")
    features = {
        "captions/long": tf.io.FixedLenSequenceFeature([], tf.string, True),
        "seeds": tf.io.VarLenFeature(tf.string),
    }
    parsed = [tf.io.parse_single_example(payload, features) for payload in dataset]
    assert [len(p["captions/long"]) for p in parsed] == [1, 0, 0]
    assert [len(p["seeds"].values) for p in parsed] == [0, 0, 0]


def test_alt_text_may_be_empty_and_has_no_score_then(tmp_path):
    source = ImageTextSource(
        "web", str(tmp_path / "crawl" / "*.tar"), needs_alt_text=False, keep_all=True
    )
    rows = [Row(encoded((1, 2, 3)), alt_text="", score=math.nan)]
    run = captioned_run(tmp_path, {"a": rows}, sources=(source,))
    export(run)
    (sample,) = samples_of(run)
    assert sample.alt_text == ""
    assert math.isnan(sample.alignment_score)
    assert export(run) == {}


def test_nothing_kept_gives_a_manifest_without_shards(tmp_path):
    run = captioned_run(tmp_path, LOTS, export=TWO_A_SHARD, selection=MORE)
    export(run)
    none = {
        stem: [dataclasses.replace(r, outcome=DropReason.LANGUAGE) for r in rows]
        for stem, rows in LOTS.items()
    }
    run = captioned_run(tmp_path, none, export=TWO_A_SHARD, selection=FEWER)
    export(run)
    receipts = {f"lots/{lot.name}.json" for lot in run.lots}
    assert set(bytes_of(TFRECORD.path(run.root))) == {"manifest.json"} | receipts
    assert (manifest_of(run)["n_samples"], manifest_of(run)["shards"]) == (0, [])


@given(
    kept=st.lists(st.booleans(), max_size=30),
    n_per_shard=st.integers(1, 7),
    n_items=st.integers(1, 8),
)
def test_a_plan_has_every_sample_once_and_full_shards_but_the_last(
    kept, n_per_shard, n_items
):
    rows = [row for row, is_kept in enumerate(kept) if is_kept]
    digests = [(row, bytes([row])) for row in rows]
    plan = lot_shards._cut(digests, n_per_shard, lot_shards.ShardIdentity("s"))
    found = [row for shard in plan for row in range(shard.start, shard.stop)]
    assert [row for row in found if kept[row]] == rows
    assert [shard.number for shard in plan] == list(range(len(plan)))
    sizes = [shard.n_samples for shard in plan]
    assert sizes == [sum(kept[shard.start : shard.stop]) for shard in plan]
    assert all(size == n_per_shard for size in sizes[:-1])
    assert all(0 < size <= n_per_shard for size in sizes)
    items = stage._divide(plan, n_items)
    assert [shard for item in items for shard in item] == plan
    assert 1 <= len(items) <= n_items


def sample_with(data, image_format):
    height, width, _ = images.decode(data, Limits()).rgb.shape
    return records.Sample(
        sample_id=content_hash(data),
        image=b"",
        image_format=image_format,
        width=width,
        height=height,
        alt_text="",
        captions={},
        alignment_score=0.0,
        source="web",
        seeds=(),
    )


def exported(data, image_format, **changes):
    sample = sample_with(data, image_format)
    return samples.with_image(sample, data, ExportConfig(**changes), Limits())


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("image_format", "mode", "options"),
    [
        ("jpeg", "RGB", {}),
        ("jpeg", "L", {}),
        ("png", "RGB", {}),
        ("png", "P", {}),
        ("png", "1", {}),
        ("webp", "RGB", {"lossless": True}),
        ("webp", "RGB", {}),
    ],
)
def test_images_that_fit_keep_their_bytes(image_format, mode, options):
    image = Image.new("RGB", (40, 24), (200, 30, 90)).convert(mode)
    data = saved(image, format=image_format, **options)
    sample = exported(data, image_format, max_side_px=24)
    assert (sample.image, sample.image_format) == (data, image_format)
    assert (sample.width, sample.height) == (40, 24)


def test_the_short_side_is_cut_to_the_maximum_and_the_aspect_kept():
    data = encoded((200, 30, 90), size=(90, 61))
    sample = exported(data, "png", max_side_px=20)
    assert (sample.image_format, sample.width, sample.height) == ("jpeg", 30, 20)
    rgb = images.decode(sample.image, Limits()).rgb
    assert rgb.shape == (20, 30, 3)
    assert np.abs(rgb.astype(int) - (200, 30, 90)).max() <= 2


def test_a_resized_image_is_averaged_and_not_picked_from():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    sample = exported(
        saved(Image.fromarray(stripes), format="PNG"), "png", max_side_px=16
    )
    assert (
        np.abs(images.decode(sample.image, Limits()).rgb.astype(int) - 128).max() <= 2
    )


def test_a_higher_quality_costs_more_bytes():
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = saved(Image.fromarray(noise), format="PNG")
    sizes = [
        len(exported(data, "png", max_side_px=32, jpeg_quality=quality).image)
        for quality in (50, 95)
    ]
    assert sizes[0] < sizes[1]


def gray_16_bit():
    return cv2.imencode(".png", np.full((8, 8), 0x8040, np.uint16))[1].tobytes()


def rgb_16_bit():
    return cv2.imencode(".png", np.full((8, 8, 3), 0x8040, np.uint16))[1].tobytes()


def half_transparent(image_format):
    return saved(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), format=image_format)


@pytest.mark.parametrize(
    ("data", "image_format"),
    [
        (saved(Image.new("CMYK", (8, 8), (0, 200, 100, 20)), format="JPEG"), "jpeg"),
        (gray_16_bit(), "png"),
        (rgb_16_bit(), "png"),
        (half_transparent("PNG"), "png"),
        (half_transparent("WEBP"), "webp"),
        (encoded((9, 9, 9), transparency=(9, 9, 9)), "png"),
    ],
)
def test_what_decoders_disagree_on_becomes_the_rgb_that_was_scored(data, image_format):
    sample = exported(data, image_format)
    assert sample.image_format == "jpeg"
    by_tensorflow = tf.io.decode_image(sample.image, channels=3).numpy()
    by_opencv = cv2.imdecode(np.frombuffer(sample.image, np.uint8), cv2.IMREAD_COLOR)
    scored = images.decode(data, Limits()).rgb.astype(int)
    assert np.abs(by_tensorflow - scored).max() <= 3
    assert np.abs(by_opencv[..., ::-1] - scored).max() <= 3


def turned(image_format):
    exif = Image.Exif()
    exif[0x0112] = 6
    gray = Image.new("L", (16, 8), 90).convert("RGB")
    gray.paste((200, 30, 90), (0, 0, 8, 8))
    return saved(gray, format=image_format, exif=exif)


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_a_turned_image_is_stored_upright_and_without_a_tag(image_format):
    data = turned(image_format)
    sample = exported(data, image_format)
    assert (sample.width, sample.height) == (8, 16)
    with Image.open(io.BytesIO(sample.image)) as image:
        assert image.size == (8, 16)
        assert image.getexif().get(0x0112, 1) == 1


def test_a_film_behind_a_photo_stays_out():
    photo = saved(Image.new("RGB", (40, 24), (200, 30, 90)), format="JPEG")
    sample = exported(photo + b"ftypmp42" + bytes(9999), "jpeg")
    assert sample.image == photo


def test_an_image_too_long_for_a_jpeg_becomes_a_png():
    data = encoded((10, 20, 30), size=(140_000, 2))
    sample = exported(data, "png", max_side_px=1)
    assert (sample.image_format, sample.width, sample.height) == ("png", 70_000, 1)
    rgb = images.decode(sample.image, Limits()).rgb
    assert (rgb == (10, 20, 30)).all()


FLAGS = {  # of the captions of LOTS["a"], by granularity and row
    "short": [("no_end", "length"), ("length",), ()],
    "long": [(), ("frequent",), ("no_end",)],
}


def flagged_run(root, drop_caption_flags, **changes):
    """Captions with FLAGS in lot a, and without a flag in b."""
    export_config = ExportConfig(drop_caption_flags=drop_caption_flags, **changes)
    run = captioned_run(root, LOTS, export=export_config)
    for lot, rows in zip(run.lots, LOTS.values(), strict=True):
        flagged = [
            records.FlaggedCaption(
                sample_id=sample_id(row.image, row.alt_text.encode()),
                granularity=name,
                sample_index=0,
                flags=flags[number] if len(rows) == 3 else (),
                n_words=5,
                repetition=0.0,
                language="en",
                language_probability=1.0,
                alignment_score=None,
            )
            for number, row in enumerate(rows)
            for name, flags in FLAGS.items()
        ]
        table = to_table(flagged, records.FlaggedCaption)
        run.flags.write(lot.name, table)
    return run


def test_captions_with_a_flag_to_drop_stay_out_and_are_counted(tmp_path):
    run = flagged_run(tmp_path, ("no_end", "length"))
    export(run)
    said = [sorted(sample.captions) for sample in samples_of(run)]
    both = ["long", "short"]
    assert said == [["long"], ["long"], ["short"], both, both]
    assert samples_of(run)[2].captions == {"short": ("cap en 2 7 9",)}
    found = manifest_of(run)
    assert found["dropped_captions"] == {
        "short": {"captions": 2, "length": 2, "no_end": 1},
        "long": {"captions": 1, "length": 0, "no_end": 1},
    }
    assert found["n_without_granularity"] == {"short": 2, "long": 1}
    assert found["n_samples"] == 5


def test_a_sample_whose_required_captions_are_flagged_stays_out(tmp_path):
    run = flagged_run(tmp_path, ("no_end",), required_granularities=("short",))
    export(run)
    texts = [sample.alt_text for sample in samples_of(run)]
    assert texts == [f"text {number}" for number in (1, 2, 10, 11)]
    assert manifest_of(run)["n_without_granularity"] == {"short": 1, "long": 1}


def test_without_flags_to_drop_no_table_of_flags_is_read(tmp_path):
    run = captioned_run(tmp_path, LOTS)
    export(run)
    assert not Path(run.root, "flags").exists()
    nothing = {"captions": 0}
    assert manifest_of(run)["dropped_captions"] == {"short": nothing, "long": nothing}
    assert all(len(sample.captions) == 2 for sample in samples_of(run))


def test_one_of_several_captions_stays_out(tmp_path):
    rows = {"a": plain_rows(1)}
    run = make_run(
        tmp_path,
        rows,
        granularities=(SHORT,),
        export=ExportConfig(drop_caption_flags=("empty",)),
    )
    key = (content_hash(rows["a"][0].image), prompt_hash(SHORT.prompt))
    captions = [
        records.SyntheticCaption(*key, index, text, 4, reason, -0.5)
        for index, text, reason in (
            (0, "no answer", "error"),
            (1, "", "stop"),
            (2, "a dog", "stop"),
            (3, "a cat", "length"),
        )
    ]
    (lot,) = run.lots
    CaptionTables.open(run.captions(SHORT)).add(lot.base, captions)
    run_stage(Flag(run), run.lots)
    export(run)
    assert [sample.captions for sample in samples_of(run)] == [
        {"short": ("a dog", "a cat")}
    ]
    dropped = {"captions": 1, "empty": 1}
    assert manifest_of(run)["dropped_captions"] == {"short": dropped}


def test_other_flags_to_drop_make_an_export_incomplete(tmp_path):
    run = flagged_run(tmp_path, ("no_end",))
    export(run)
    assert is_complete(run)
    before = bytes_of(TFRECORD.path(run.root))
    export(flagged_run(tmp_path, ("no_end", "frequent")))
    assert not is_complete(run)
    assert len(samples_of(run)[1].captions) == 1
    export(run)
    assert bytes_of(TFRECORD.path(run.root)) == before


def test_an_export_depends_on_its_thresholds_of_quality(tmp_path):
    run = flagged_run(tmp_path, ("no_end",))
    export(run)
    quality = CaptionQuality(max_repetition=0.5)
    config = dataclasses.replace(run.config, caption_quality=quality)
    stricter = dataclasses.replace(run, config=config)
    assert not is_complete(stricter)
    assert manifest_of(run)["fingerprints"]["flags"] == run.flags_fingerprint


def test_webdataset_shards_hold_what_the_records_hold(tmp_path):
    rows = [Row(encoded((1, 2, 3)), "Ein Fahrrad \N{BICYCLE}", seeds=("x", "y"))]
    run = captioned_run(tmp_path, {"a": [*rows, *plain_rows(2)]}, export=TWO_A_SHARD)
    export(run)
    export(run, shard_format=WEBDATASET)
    folder = Path(WEBDATASET.path(run.root))
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                found.setdefault(key, {})[extension] = tar.extractfile(member).read()
    expected = samples_of(run)
    assert list(found) == [sample.sample_id.hex() for sample in expected]
    for sample, parts in zip(expected, found.values(), strict=True):
        described = json.loads(parts.pop("json"))
        assert described["captions"] == {g: [*t] for g, t in sample.captions.items()}
        assert described["seeds"] == [*sample.seeds]
        assert described["image_format"] == sample.image_format
        assert parts == {
            "jpg": sample.image,
            "txt": sample.alt_text.encode(),
            "short.txt": sample.captions["short"][0].encode(),
            "long.txt": sample.captions["long"][0].encode(),
        }


def tar_members(path, samples, granularities):
    """Key to extension to content, of a tar of these samples."""
    webdataset.write_local(str(path), samples, granularities)
    found = collections.defaultdict(dict)
    with tarfile.open(path) as tar:
        for member in tar:
            key, extension = member.name.split(".", 1)
            found[key][extension] = tar.extractfile(member).read()
    return list(found.values())


def test_all_images_of_a_tar_have_one_extension_whatever_their_format(tmp_path):
    formats = ("PNG", "WEBP", "JPEG", "PNG")
    made = [
        (saved(Image.new("RGB", (8, 8), (n, 0, 0)), format=name), name.lower())
        for n, name in enumerate(formats)
    ]
    written = [
        dataclasses.replace(sample_with(data, name), image=data) for data, name in made
    ]
    found = tar_members(tmp_path / "a.tar", written, ())
    assert [parts["jpg"] for parts in found] == [data for data, _ in made]
    names = [json.loads(parts["json"])["image_format"] for parts in found]
    assert names == ["png", "webp", "jpeg", "png"]


@pytest.mark.parametrize(
    "captions",
    [
        ({}, {"short": ("a",), "long": ("b", "c")}),
        ({"long": ("b",)}, {"short": ("a",)}),
        ({"short": ("a",), "long": ("b",)}, {"long": ("c",)}),
        ({}, {}),
    ],
)
def test_all_samples_of_a_tar_have_the_same_members(captions, tmp_path):
    """Loaders take the columns of the whole set from its first samples."""
    data = encoded((1, 2, 3))
    written = [
        dataclasses.replace(
            sample_with(data, "png"), sample_id=bytes([n]) * 16, captions=one
        )
        for n, one in enumerate(captions)
    ]
    found = tar_members(tmp_path / "a.tar", written, ("short", "long"))
    assert [{*parts} for parts in found] == [
        {"jpg", "txt", "short.txt", "long.txt", "json"}
    ] * len(captions)
    for parts, one in zip(found, captions, strict=True):
        for name in ("short", "long"):
            first = one.get(name, ("",))[0]
            assert parts[f"{name}.txt"] == first.encode()


def test_webdataset_shards_are_found_by_their_index_and_not_written_again(tmp_path):
    run = captioned_run(tmp_path, LOTS, export=TWO_A_SHARD)
    assert not is_complete(run, WEBDATASET)
    export(run, shard_format=WEBDATASET)
    assert is_complete(run, WEBDATASET)
    assert not is_complete(run)
    folder = Path(WEBDATASET.path(run.root))
    (shard,) = folder.glob(f"train-{run.lots[0].base}-00001-*.tar")
    (only,) = np.frombuffer(Path(f"{shard}.index").read_bytes(), records.INDEX_DTYPE)
    start, length = only.tolist()
    data = shard.read_bytes()[start : start + length]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        keys = {name.split(".", 1)[0] for name in tar.getnames()}
    assert len(keys) == 1
    before = mtimes(folder)
    export(run, shard_format=WEBDATASET)
    assert mtimes(folder) == before


def test_webdataset_shards_are_source_shards_again(tmp_path):
    run = captioned_run(tmp_path, LOTS)
    export(run, shard_format=WEBDATASET)
    source = ImageTextSource("again", f"{WEBDATASET.path(run.root)}/*.tar")
    shards = [lot.shards[0] for lot in singles(source)]
    pairs = [pair for shard in shards for pair in sources.read_pairs(shard, Limits())]
    export(run)
    expected = [sample.sample_id for sample in samples_of(run)]
    found = [sample_id(pair.image, pair.alt_text) for pair in pairs]
    assert sorted(found) == sorted(expected)
    assert {pair.error for pair in pairs} == {""}
