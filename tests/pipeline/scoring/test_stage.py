"""Tests of the score stage: tables, what is made when, and what is counted."""

import dataclasses
import io
import json
import math
import os
import tarfile
from pathlib import Path
from typing import ClassVar

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from PIL import Image

from pipeline.config.curation import CurationConfig, EncoderConfig, ImageTextSource
from pipeline.config.selection import SelectionConfig
from pipeline.engine import lot_plan, scored_shards
from pipeline.engine.run_folder import RunFolder
from pipeline.images import decoder as images
from pipeline.models import language
from pipeline.models.encoders import NullEncoder
from pipeline.records import Language, Pair, content_hash, sample_id
from pipeline.scoring.encoder_handler import EncoderHandler, PreparedPair
from pipeline.scoring.stage import Score, remove_outdated
from pipeline.sources import shards
from pipeline.storage.tables import from_table

GERMAN = "ein kleiner Junge spielt im Garten mit einem Ball"
ENGLISH = "a brown dog runs after a red ball in the green grass"


class NullHandler(EncoderHandler):
    """Loads an encoder without weights, and counts how often."""

    n_loads: ClassVar[int] = 0

    def load_model(self) -> NullEncoder:
        type(self).n_loads += 1
        return NullEncoder(batch_size=self.config.batch_size)


@pytest.fixture(autouse=True)
def _no_loads(monkeypatch):
    monkeypatch.setattr(NullHandler, "n_loads", 0)


def png(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, *pairs: tuple[bytes, bytes | None]) -> None:
    """An img2dataset tar of images and alt texts; None leaves the text out."""
    with tarfile.open(path, "w") as tar:
        for number, (image, alt_text) in enumerate(pairs):
            metadata = json.dumps({"url": f"https://example.com/{number}"}).encode()
            members = {"png": image, "txt": alt_text, "json": metadata}
            for suffix, data in members.items():
                if data is not None:
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def make_run(folder: Path, **changes) -> RunFolder:
    """A run over `folder/*.tar`; `changes` are fields of the configuration."""
    fields = {
        "encoder": EncoderConfig("null", batch_size=2),
        "selection": SelectionConfig(),
        "sources": (ImageTextSource("web", str(folder / "*.tar")),),
        "shards_per_lot": 1,
    }
    config = CurationConfig(**fields | changes)
    sets = (config.sources, config.evaluation_sets, config.seed_sets)
    listed = {
        role: {source: shards.list_marks(source) for source in each}
        for role, each in zip(lot_plan.ROLES, sets, strict=True)
    }
    root = str(folder / "run")
    plan, lots = lot_plan.plan_lots(
        lot_plan.LotPlan.read(root), listed, config.shards_per_lot
    )
    checkpoints = {config.encoder.checkpoint: "digest"}
    return RunFolder(root, config, *lots.values(), checkpoints, plan=plan)


def score(run: RunFolder) -> dict[str, int]:
    """Scores all lots; returns the counters."""
    run.plan.write(run.root)
    lots = [*run.lots, *run.evaluation_lots, *run.seed_lots]
    pipeline = beam.Pipeline(FnApiRunner(), options=PipelineOptions([]))
    _ = pipeline | beam.Create(lots) | Score(run, NullHandler(run.config.encoder))
    counters = pipeline.run().metrics().query()["counters"]
    return {
        counter.key.metric.name: counter.committed
        for counter in counters
        if counter.key.metric.namespace == "score"
    }


def pairs_of(run: RunFolder, lot: shards.Lot) -> list[Pair]:
    return from_table(run.pairs(lot.source).read(lot.name), Pair)


def languages_of(run: RunFolder, lot: shards.Lot) -> list[Language]:
    return from_table(run.languages(lot.source).read(lot.name), Language)


def embeddings_of(run: RunFolder, lot: shards.Lot) -> tuple[np.ndarray, np.ndarray]:
    table = run.embeddings(lot.source).read(lot.name)
    rows = table["embedding"].combine_chunks()
    width = table.schema.field("embedding").type.list_size
    return (
        rows.flatten().to_numpy().reshape(-1, width),
        table["alignment_score"].to_numpy(),
    )


def tables_of(run: RunFolder) -> dict[str, bytes]:
    """Path in the run folder to content of every table."""
    return {
        str(path.relative_to(run.root)): path.read_bytes()
        for path in sorted(Path(run.root, "scores").rglob("*.parquet"))
    }


def test_a_readable_pair_has_a_row_with_all_that_is_known(tmp_path):
    image, text = png(7), ENGLISH.encode()
    write_shard(tmp_path / "a.tar", (image, text))
    run = make_run(tmp_path)
    score(run)
    (lot,) = run.lots
    expected = Pair(
        sample_id=sample_id(image, text),
        key="0",
        url="https://example.com/0",
        alt_text=ENGLISH,
        image_hash=content_hash(image),
        image_format="png",
        width=4,
        height=3,
        n_bytes=len(image),
        offset=512,
        error="",
    )
    assert pairs_of(run, lot) == [expected]


def test_tables_have_the_same_rows_in_the_order_of_the_shard(tmp_path):
    write_shard(
        tmp_path / "a.tar",
        (png(0), ENGLISH.encode()),
        (b"no image", GERMAN.encode()),
        (png(1), None),
        (png(2), GERMAN.encode()),
        (png(3), b"12 34"),
    )
    run = make_run(tmp_path)
    counters = score(run)
    (lot,) = run.lots
    not_image = "starts with b'no image': expected a JPEG, PNG or WebP image"
    errors = ["", not_image, "no alt text", "", ""]
    assert [pair.error for pair in pairs_of(run, lot)] == errors
    codes = [row.code for row in languages_of(run, lot)]
    assert codes == ["en", "", "", "de", ""]
    embeddings, scores = embeddings_of(run, lot)
    assert embeddings.any(axis=1).tolist() == [True, False, False, True, True]
    assert np.isnan(scores).tolist() == [False, True, True, False, False]
    assert counters == {
        "pairs": 5,
        "unreadable": 2,
        "languages_detected": 3,
        "images_encoded": 3,
        "texts_encoded": 3,
    }


def test_embeddings_are_the_encoders_and_scores_their_cosine(tmp_path):
    write_shard(tmp_path / "a.tar", *((png(i), f"text {i}".encode()) for i in range(5)))
    run = make_run(tmp_path)
    score(run)
    encoder = NullEncoder()
    pixels = [
        encoder.prepare_image(np.full((3, 4, 3), (i, 0, 0), np.uint8)) for i in range(5)
    ]
    expected = encoder.encode_images(np.stack(pixels))
    texts = encoder.encode_texts([f"text {i}" for i in range(5)])
    embeddings, scores = embeddings_of(run, run.lots[0])
    assert (embeddings.dtype, scores.dtype) == (np.float16, np.float32)
    np.testing.assert_array_equal(embeddings, expected.astype(np.float16))
    np.testing.assert_allclose(scores, (expected * texts).sum(axis=1), atol=1e-6)


def test_a_second_run_makes_nothing_and_loads_no_model(tmp_path):
    for name in "ab":
        write_shard(tmp_path / f"{name}.tar", (png(0), ENGLISH.encode()))
    run = make_run(tmp_path)
    score(run)
    before = tables_of(run)
    assert NullHandler.n_loads == 1  # for both lots
    assert score(run) == {"lots_skipped": 2}
    assert NullHandler.n_loads == 1
    assert tables_of(run) == before


def test_only_the_lots_that_lack_a_table_are_scored(tmp_path):
    for name in "ab":
        write_shard(tmp_path / f"{name}.tar", (png(0), ENGLISH.encode()))
    run = make_run(tmp_path)
    score(run)
    before = tables_of(run)
    tables = run.embeddings(run.lots[1].source)
    tables.delete([run.lots[1].name])
    counters = score(run)
    assert counters == {"lots_skipped": 1, "images_encoded": 1, "texts_encoded": 1}
    assert tables_of(run) == before


def test_another_detector_reads_no_image_and_loads_no_encoder(tmp_path):
    write_shard(tmp_path / "a.tar", (png(0), GERMAN.encode()), (b"", b"text"))
    run = make_run(tmp_path)
    score(run)
    (tmp_path / "a.tar").unlink()
    other = dataclasses.replace(
        run, config=dataclasses.replace(run.config, language_detector="langdetect")
    )
    assert score(other) == {"languages_detected": 1}
    assert [row.code for row in languages_of(other, run.lots[0])] == ["de", ""]
    assert NullHandler.n_loads == 1


def test_another_encoder_leaves_pairs_and_languages_alone(tmp_path, monkeypatch):
    pairs = [(png(i), f"text {i}".encode()) for i in range(5)]
    pairs[1:1] = [(b"", b"text"), (png(9), None)]
    write_shard(tmp_path / "a.tar", *pairs)
    run = make_run(tmp_path)
    score(run)
    before = tables_of(run)
    encoder = dataclasses.replace(run.config.encoder, dtype="bfloat16")
    other = make_run(tmp_path, encoder=encoder)
    monkeypatch.setattr(language, "detector", None)  # a call would be an error
    assert score(other) == {"images_encoded": 5, "texts_encoded": 5}
    after = tables_of(run)
    assert after.items() > before.items()
    # The same encoder in one pass over the shard, and in a later one of its own:
    (new,) = after.keys() - before.keys()
    (old,) = (path for path in before if "embedding" in path)
    assert after[new] == before[old]


def test_an_embedding_of_other_bytes_than_were_scored_is_an_error(tmp_path):
    write_shard(tmp_path / "a.tar", (png(0), b"text"))
    run = make_run(tmp_path)
    score(run)
    before = (tmp_path / "a.tar").stat()
    write_shard(tmp_path / "a.tar", (png(1), b"text"))
    os.utime(tmp_path / "a.tar", ns=(before.st_atime_ns, before.st_mtime_ns))
    encoder = dataclasses.replace(run.config.encoder, dtype="bfloat16")
    with pytest.raises(
        shards.ShardError, match=r"a\.tar has changed since it was scored"
    ):
        score(make_run(tmp_path, encoder=encoder))


def write_parquet(path: Path, *texts: str) -> None:
    images = [png(number) for number in range(len(texts))]
    pq.write_table(pa.table({"jpg": images, "text": list(texts)}), path)


def texts_of(run: RunFolder, lot: shards.Lot) -> list[str]:
    return [pair.alt_text for pair in pairs_of(run, lot)]


def rows_of(*texts: str) -> list[tuple[bytes, bytes]]:
    return [(png(number), text.encode()) for number, text in enumerate(texts)]


def test_a_shard_that_changed_is_scored_again(tmp_path):
    write_shard(tmp_path / "a.tar", *rows_of("one"))
    cut, shifted = tmp_path / "b.tar", tmp_path / "c.tar"
    write_shard(cut, *rows_of("two", "three"))
    whole = cut.read_bytes()
    cut.write_bytes(whole[:3000])
    write_shard(shifted, *rows_of("four", "five"))
    n_bytes = shifted.stat().st_size
    score(make_run(tmp_path))
    cut.write_bytes(whole)
    write_shard(shifted, *rows_of("five", "four"))
    assert shifted.stat().st_size == n_bytes
    run = make_run(tmp_path)
    assert scored_shards.changed(run) == [str(cut), str(shifted)]
    counters = score(run)
    assert (counters["pairs"], counters["lots_skipped"]) == (4, 1)
    texts = [texts_of(run, lot) for lot in run.lots]
    assert texts == [["one"], ["two", "three"], ["five", "four"]]
    assert scored_shards.changed(run) == []
    assert score(make_run(tmp_path)) == {"lots_skipped": 3}


def test_scores_of_what_a_shard_held_are_removed_when_those_of_now_are_there(tmp_path):
    for name in "ab":
        write_shard(tmp_path / f"{name}.tar", *rows_of(name))
    score(make_run(tmp_path))
    write_shard(tmp_path / "a.tar", *rows_of("c", "d"))
    run = make_run(tmp_path)
    score(run)
    assert len(tables_of(run)) == 3 * 3
    remove_outdated(run)
    for tables in (run.pairs, run.languages, run.embeddings):
        found = tables(run.lots[0].source).lot_names()
        assert found == {lot.name for lot in run.lots}


@pytest.mark.parametrize("role", ["evaluation_sets", "seed_sets"])
def test_a_parquet_shard_of_a_set_that_was_repaired_is_scored_again(tmp_path, role):
    (tmp_path / "set").mkdir()
    path = tmp_path / "set/0.parquet"
    write_parquet(path, "one", "two")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    source = ImageTextSource("birds", str(path), needs_alt_text=False)
    write_shard(tmp_path / "a.tar", *rows_of("zero"))
    counters = score(make_run(tmp_path, **{role: (source,)}))
    name = role.partition("_")[0]
    assert (counters[f"{name}_images"], counters[f"{name}_unreadable"]) == (1, 1)
    assert (counters["pairs"], counters["unreadable"]) == (1, 0)
    path.write_bytes(whole)
    run = make_run(tmp_path, **{role: (source,)})
    assert scored_shards.changed(run) == [str(path)]
    assert score(run)[f"{name}_images"] == 2
    (lot,) = (*run.evaluation_lots, *run.seed_lots)
    assert texts_of(run, lot) == ["one", "two"]


@pytest.mark.parametrize(
    "change",
    [
        lambda path: write_shard(path, *rows_of("one", "two", "three")),  # it grows
        lambda path: write_shard(path, *rows_of("two", "one")),  # of the same size
        lambda path: path.write_bytes(b""),
    ],
    ids=["grows", "rewritten", "emptied"],
)
def test_a_shard_that_changes_while_it_is_read_gets_no_tables(
    tmp_path, monkeypatch, change
):
    write_shard(tmp_path / "a.tar", *rows_of("one", "two"))
    write_shard(tmp_path / "b.tar", *rows_of("four"))
    run, read_pairs = make_run(tmp_path), shards.read_pairs

    def read_and_change(shard, limits):
        yield from read_pairs(shard, limits)
        if shard.uri.endswith("a.tar"):
            change(tmp_path / "a.tar")

    monkeypatch.setattr(shards, "read_pairs", read_and_change)
    counters = score(run)
    assert (counters["pairs"], counters["shards_changed"]) == (1, 1)
    (path,) = Path(run.root, "scores").glob("pairs-*/*.parquet")
    assert path.name == f"{run.lots[1].name}.parquet"
    with pytest.raises(ValueError, match=r"^1 shard changed: .*/a\.tar; again$"):
        scored_shards.expect_scored(run, "changed", "again")
    monkeypatch.undo()
    assert score(make_run(tmp_path))["lots_skipped"] == 1
    scored_shards.expect_scored(make_run(tmp_path), "changed", "again")


def test_a_shard_that_is_gone_when_it_is_read_is_one_unreadable_row(tmp_path):
    write_shard(tmp_path / "a.tar", *rows_of("one"))
    run = make_run(tmp_path)
    (tmp_path / "a.tar").unlink()
    assert score(run)["unreadable"] == 1
    assert "cannot be opened" in pairs_of(run, run.lots[0])[0].error


def test_a_shard_that_cannot_be_read_is_one_unreadable_row(tmp_path):
    write_shard(tmp_path / "a.tar", (png(0), b"text"))
    (tmp_path / "b.tar").write_bytes(b"garbage")
    run = make_run(tmp_path)
    counters = score(run)
    assert (counters["pairs"], counters["unreadable"]) == (2, 1)
    (row,) = pairs_of(run, run.lots[1])
    assert row.error.startswith("tar cut off at byte 7")


def test_a_lot_without_pairs_has_empty_tables(tmp_path):
    write_shard(tmp_path / "a.tar")
    run = make_run(tmp_path)
    assert score(run)["pairs"] == 0
    (lot,) = run.lots
    assert (pairs_of(run, lot), languages_of(run, lot)) == ([], [])
    assert embeddings_of(run, lot)[0].shape == (0, 64)
    assert score(run) == {"lots_skipped": 1}


def test_evaluation_and_seed_images_need_no_text_and_no_language(tmp_path, monkeypatch):
    write_shard(tmp_path / "a.tar", (png(0), None), (png(1), b"text"))
    source = ImageTextSource("eval", str(tmp_path / "a.tar"), needs_alt_text=False)
    run = make_run(tmp_path, sources=(), evaluation_sets=(source,), seed_sets=(source,))
    monkeypatch.setattr(language, "detector", None)  # a call would be an error
    score(run)
    (lot,) = run.evaluation_lots
    assert [pair.error for pair in pairs_of(run, lot)] == ["", ""]
    embeddings, scores = embeddings_of(run, lot)
    assert embeddings.any(axis=1).all()
    assert np.isnan(scores).tolist() == [True, False]
    assert score(run) == {"lots_skipped": 2}


def test_the_same_shard_as_source_and_as_evaluation_set_gets_its_language(tmp_path):
    write_shard(tmp_path / "a.tar", (png(0), ENGLISH.encode()))
    source = ImageTextSource("web", str(tmp_path / "a.tar"))
    run = make_run(tmp_path, sources=(source,), evaluation_sets=(source,))
    assert score(run)["pairs"] == 2
    assert [row.code for row in languages_of(run, run.lots[0])] == ["en"]


def test_only_full_batches_but_for_the_last_reach_the_encoder(tmp_path, monkeypatch):
    pairs = [(png(i), b"text") for i in range(5)]
    pairs[1:1] = [(b"", b"text")] * 3
    write_shard(tmp_path / "a.tar", *pairs)
    sizes = []
    run_inference = NullHandler.run_inference

    def recorded(self, batch, model, inference_args=None):
        sizes.append(len(batch))
        return run_inference(self, batch, model, inference_args)

    monkeypatch.setattr(NullHandler, "run_inference", recorded)
    score(make_run(tmp_path))
    assert sizes == [2, 2, 1]


def test_texts_that_are_missing_are_not_embedded():
    pixels = np.zeros((32, 32, 3), np.uint8)
    batch = [PreparedPair(pixels, text) for text in ("", "a", "")]
    handler = NullHandler(EncoderConfig("null"))
    scores = [
        row.alignment_score for row in handler.run_inference(batch, NullEncoder())
    ]
    assert [math.isnan(value) for value in scores] == [True, False, True]
    (only,) = handler.run_inference(batch[:1], NullEncoder())
    assert math.isnan(only.alignment_score)


def test_a_bug_is_not_taken_for_a_bad_image(tmp_path, monkeypatch):
    def fail(*args: object) -> None:
        raise KeyError("a bug")

    write_shard(tmp_path / "a.tar", (png(0), b"text"))
    monkeypatch.setattr(images, "decode", fail)
    with pytest.raises(KeyError, match="a bug"):
        score(make_run(tmp_path))


def test_the_embedding_column_has_a_fixed_width(tmp_path):
    write_shard(tmp_path / "a.tar", (png(0), b"text"))
    run = make_run(tmp_path)
    score(run)
    (lot,) = run.lots
    schema = run.embeddings(lot.source).read(lot.name).schema
    assert schema.names == ["embedding", "alignment_score"]
    assert schema.field("embedding").type == pa.list_(pa.float16(), 64)
    assert schema.field("alignment_score").type == pa.float32()
