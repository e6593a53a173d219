import pickle
import re

import pytest
import tiny_export

from pipeline import records
from trainer.shards import RecordError, Shards


@pytest.fixture
def folder(tmp_path):
    """Three records in shard 0, four in shard 1."""
    samples = [tiny_export.sample(number) for number in range(7)]
    return tiny_export.write(tmp_path, samples, n_shards=2)


def shard(folder, number):
    return folder / f"train-{number:05d}-of-00002.tfrecord"


def test_samples_come_in_the_order_of_the_manifest(folder):
    shards = Shards(folder)
    assert len(shards) == 7
    assert [shards[i] for i in (6, 0, 3)] == [tiny_export.sample(i) for i in (6, 0, 3)]


def test_a_shard_without_samples_is_skipped(tmp_path):
    folder = tiny_export.write(tmp_path, [tiny_export.sample(0)], n_shards=3)
    assert Shards(folder)[0] == tiny_export.sample(0)


def test_shards_are_cheap_to_send_to_a_worker(folder):
    shards = Shards(folder)
    data = pickle.dumps(shards)
    assert len(data) < 1000
    assert pickle.loads(data)[5] == shards[5]


def test_the_fingerprint_follows_the_contents(tmp_path):
    samples = [tiny_export.sample(number) for number in range(3)]
    fingerprints = [
        Shards(tiny_export.write(tmp_path / str(i), these, 1)).fingerprint
        for i, these in enumerate((samples, samples, samples[::-1]))
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema_version": 99}, "schema_version=99, expected 1"),
        ({"shards": []}, "0 samples, expected at least one"),
    ],
)
def test_a_manifest_that_does_not_fit_is_an_error(folder, fields, message):
    tiny_export.write_manifest(folder, **fields)
    with pytest.raises(ValueError, match=message):
        Shards(folder)


@pytest.mark.parametrize("contents", ["", "[]", "{}", '{"schema_version": 1}'])
def test_a_manifest_of_something_else_is_an_error(folder, contents):
    (folder / "manifest.json").write_text(contents)
    with pytest.raises(ValueError, match=r"manifest\.json: "):
        Shards(folder)


def test_a_folder_without_manifest_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.json: No such file"):
        Shards(tmp_path)


@pytest.mark.parametrize("suffix", ["", ".index"])
def test_a_missing_file_is_named(folder, suffix):
    path = shard(folder, 1)
    path = path.with_name(path.name + suffix)
    path.unlink()
    with pytest.raises(ValueError, match=re.escape(f"{path}: missing")):
        Shards(folder)


def test_a_truncated_shard_is_found_before_any_work(folder):
    path = shard(folder, 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"of-00002\.tfrecord: \d+ bytes, expected"):
        Shards(folder)


def test_an_index_of_another_length_is_an_error(folder):
    path = shard(folder, 0).with_suffix(".tfrecord.index")
    path.write_bytes(path.read_bytes()[:-16])
    with pytest.raises(ValueError, match=r"\.index: 2 records, expected 3"):
        Shards(folder)


def test_an_index_that_points_elsewhere_is_found_when_read(folder):
    path = shard(folder, 0).with_suffix(".tfrecord.index")
    entries = bytearray(path.read_bytes())
    entries[0:8] = (13).to_bytes(8, "little")
    path.write_bytes(entries)
    with pytest.raises(RecordError, match=r"record 0 of .*train-00000-of-00002"):
        Shards(folder)[0]


def test_a_broken_record_is_named(folder):
    shards = Shards(folder)
    path = shard(folder, 1)
    data = bytearray(path.read_bytes())
    start = data.index(tiny_export.serialised(tiny_export.sample(5)))
    data[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(RecordError, match=r"record 2 of .*train-00001-of-00002"):
        shards[5]
    assert isinstance(shards[4], records.Sample)
