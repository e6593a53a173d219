"""Bytes of shards that changed after they were written."""

import contextlib
import json
import logging
import re
import struct

import pytest

from pipeline import records
from tests.support import served_store, tiny_export
from tests.support.runs import metric_lines, with_set
from trainer import tokenizer, train, verify
from trainer.data.shards import RecordError, Shards

N = 8
DAMAGED = 5
HEADER, FOOTER = 12, 4


@pytest.fixture
def folder(tmp_path):
    samples = [tiny_export.sample(number) for number in range(N)]
    return tiny_export.write(tmp_path / "data", samples, n_shards=1)


def shard_of(folder):
    return folder / "train-00000-of-00001.tfrecord"


def places(folder):
    """(offset, length) of each payload."""
    index = shard_of(folder).with_name("train-00000-of-00001.tfrecord.index")
    return list(struct.iter_unpack("<QQ", index.read_bytes()))


def flip(folder, at):
    data = bytearray(shard_of(folder).read_bytes())
    data[at] ^= 16
    shard_of(folder).write_bytes(data)


def replace(folder, number, old, new):
    """In the payload of one record; both have one length."""
    offset, length = places(folder)[number]
    data = bytearray(shard_of(folder).read_bytes())
    payload = bytes(data[offset : offset + length])
    assert old in payload
    data[offset : offset + length] = payload.replace(old, new)
    shard_of(folder).write_bytes(data)


def _damage_image(folder):
    offset, length = places(folder)[DAMAGED]
    flip(folder, offset + length // 2)


def _damage_text(folder):
    replace(folder, DAMAGED, b"photo 5", b"photo 6")


def _damage_feature_name(folder):
    replace(folder, DAMAGED, b"captions/short", b"captions/shirt")


def _damage_sample_id(folder):
    sample_id = tiny_export.sample(DAMAGED).sample_id
    replace(folder, DAMAGED, sample_id, bytes(reversed(sample_id)))


def _damage_length(folder):
    flip(folder, places(folder)[DAMAGED][0] - HEADER)


def _damage_checksum_of_length(folder):
    flip(folder, places(folder)[DAMAGED][0] - 1)


def _damage_checksum_of_data(folder):
    offset, length = places(folder)[DAMAGED]
    flip(folder, offset + length)


def _zero_a_page(folder):
    offset, length = places(folder)[DAMAGED]
    data = bytearray(shard_of(folder).read_bytes())
    data[offset + 9 : offset + length - 9] = bytes(length - 18)
    shard_of(folder).write_bytes(data)


def _index_set(folder, number, entry):
    path = shard_of(folder).with_name("train-00000-of-00001.tfrecord.index")
    entries = bytearray(path.read_bytes())
    struct.pack_into("<QQ", entries, 16 * number, *entry)
    path.write_bytes(entries)


def _index_of_another_length(folder):
    offset, length = places(folder)[DAMAGED]
    _index_set(folder, DAMAGED, (offset, length - 1))


def _index_past_the_end(folder):
    _index_set(folder, DAMAGED, (places(folder)[DAMAGED][0], 1 << 62))


def _index_of_nothing(folder):
    _index_set(folder, DAMAGED, (0, 0))


def _index_into_a_payload(folder):
    offset, length = places(folder)[DAMAGED]
    _index_set(folder, DAMAGED, (offset + 1, length))


DAMAGES = [
    _damage_image,
    _damage_text,
    _damage_feature_name,
    _damage_sample_id,
    _damage_length,
    _damage_checksum_of_length,
    _damage_checksum_of_data,
    _zero_a_page,
    _index_of_another_length,
    _index_past_the_end,
    _index_of_nothing,
    _index_into_a_payload,
]


@contextlib.contextmanager
def opened(folder, kind):
    """As a local folder, and as a store whose blocks hold three records."""
    if kind == "local":
        yield Shards(folder)
        return
    with served_store.serve("s3") as store:
        served_store.upload(store, folder, "run")
        yield Shards("s3://bucket/run").in_blocks(3, n_kept=2)


@pytest.mark.parametrize("kind", ["local", "store"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_noticed_and_the_others_are_read(folder, damage, kind):
    damage(folder)
    # At the edge of a block a damaged place takes the block with it.
    others = range(N) if kind == "local" else (0, 1, 2, 6, 7)
    with opened(folder, kind) as shards:
        with pytest.raises(RecordError, match=rf"record {DAMAGED} of .*expected"):
            shards[DAMAGED]
        for number in others:
            if number != DAMAGED:
                assert shards[number] == tiny_export.sample(number)


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_what_is_damaged(folder, damage, capsys):
    verify.main(["--data", str(folder)])
    assert f"{N} records, all as the manifest says" in capsys.readouterr().out
    damage(folder)
    with pytest.raises(SystemExit) as ended:
        verify.main(["--data", str(folder)])
    assert ended.value.code == 1
    found = capsys.readouterr().out.splitlines()
    assert found[0].startswith(f"record {DAMAGED} of {shard_of(folder)}: ")
    assert len(found) == 2
    assert "expected" in found[1]


def test_verify_notices_records_that_are_whole_but_others(folder, tmp_path, capsys):
    samples = [tiny_export.sample(number) for number in reversed(range(N))]
    other = tiny_export.write(tmp_path / "other", samples, n_shards=1)
    for name in (shard_of(folder).name, f"{shard_of(folder).name}.index"):
        (folder / name).write_bytes((other / name).read_bytes())
    (sizes,) = (
        x["n_bytes"]
        for x in json.loads((other / "manifest.json").read_text())["shards"]
    )
    assert sizes == shard_of(folder).stat().st_size
    with pytest.raises(SystemExit):
        verify.main(["--data", str(folder)])
    (line,) = capsys.readouterr().out.splitlines()
    assert re.search(r": sha256 \w+, expected \w+", line)


def test_verify_notices_an_index_that_repeats_a_record(folder, capsys):
    _index_set(folder, 3, places(folder)[2])
    with pytest.raises(SystemExit):
        verify.main(["--data", str(folder)])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(".index: expected each record of the shard once")


def test_a_record_without_bytes_is_no_sample(tmp_path):
    """With right checksums: what is in it counts as well."""
    data = struct.pack("<QIi", 0, 0x07980329, -1568478504)
    folder = tiny_export.write(tmp_path, [tiny_export.sample(0)], n_shards=1)
    shard_of(folder).write_bytes(data)
    _index_set(folder, 0, (12, 0))
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    tiny_export.write_manifest(folder, shards=[shards[0] | {"n_bytes": len(data)}])
    with pytest.raises(RecordError, match=r"record 0 of .*not a training record"):
        Shards(folder)[0]


def test_records_of_tensorflow_are_whole(tmp_path):
    """Its checksums are ours."""
    from pipeline.export import tfrecords

    samples = [tiny_export.sample(number) for number in range(3)]
    folder = tiny_export.write(tmp_path, samples, n_shards=1)
    before = shard_of(folder).stat().st_size
    index = tfrecords.write_local(str(shard_of(folder)), samples)
    (folder / f"{shard_of(folder).name}.index").write_bytes(index.tobytes())
    assert index.dtype == records.INDEX_DTYPE
    shard = json.loads((folder / "manifest.json").read_text())["shards"][0]
    n_bytes = shard_of(folder).stat().st_size
    tiny_export.write_manifest(folder, shards=[shard | {"n_bytes": n_bytes}])
    assert before > 0
    assert [Shards(folder)[i] for i in range(3)] == samples


@pytest.fixture
def run_train(recipe, tmp_path):
    """Six steps of eight images; returns the exit code."""

    def run(folder, *overrides):
        sets = with_set(
            "self_supervision.distillation_weight=0",
            "self_supervision.patch_weight=0",
            *overrides,
        )
        flags = ["--config", recipe, "--data", folder, "--workdir", tmp_path / "work"]
        try:
            train.main([str(flag) for flag in [*flags, *sets]])
        except SystemExit as ended:
            return ended.code
        return 0

    return run


def test_a_changed_text_is_skipped_counted_and_named(
    folder, run_train, tmp_path, caplog
):
    _damage_text(folder)
    assert run_train(folder) == 0
    counts = [line["n_records_skipped"] for line in metric_lines(tmp_path / "work")]
    assert counts[-1] >= 6  # once an epoch, of one step
    (named,) = [x for x in caplog.messages if x.startswith("skipped record")]
    assert f"record {DAMAGED} of {shard_of(folder)}: checksum " in named


def test_too_large_a_share_of_damage_stops_the_run(folder, run_train, tmp_path, capsys):
    for number in (1, 3, 6):
        replace(folder, number, b"photo", b"phot0")
    assert run_train(folder) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "damaged records skipped, expected at most 0.2 of " in line
    assert "run.max_skipped_share" in line
    # The same command goes on once more damage is allowed.
    assert run_train(folder, "run.max_skipped_share=0.7") == 0


def test_no_damage_may_be_allowed(folder, run_train):
    assert run_train(folder, "run.max_skipped_share=1.1") == 2
    _damage_image(folder)
    assert run_train(folder, "run.max_skipped_share=0") == 1


def test_a_vocabulary_is_made_without_damaged_records(folder, tmp_path, caplog):
    flags = ["--data", str(folder), "--vocabulary-size", "50", "--output"]
    whole = list(tokenizer.shard_texts(Shards(folder)))
    _damage_text(folder)
    with caplog.at_level(logging.WARNING):
        tokenizer.main([*flags, str(tmp_path / "a.model")])
    assert [x for x in caplog.messages if f"skipped record {DAMAGED} of" in x]
    texts = list(tokenizer.shard_texts(Shards(folder)))
    assert len(texts) == len(whole) - 4
    for number in (1, 3):
        replace(folder, number, b"photo", b"phot0")
    with pytest.raises(SystemExit) as ended:
        tokenizer.main([*flags, str(tmp_path / "b.model")])
    assert ended.value.code == 1
    assert not (tmp_path / "b.model").exists()
