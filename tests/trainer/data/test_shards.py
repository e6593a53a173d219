import pickle
import re
from concurrent import futures

import pytest

from pipeline import records
from pipeline.storage import files
from tests.support import served_store, tiny_export
from tests.support.quick_http import Reply
from trainer.data.shards import RecordError, Shards


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
        ({"shards": [{"name": "train"}]}, "no n_bytes, expected an export's"),
    ],
)
def test_a_manifest_that_does_not_fit_is_an_error(folder, fields, message):
    tiny_export.write_manifest(folder, **fields)
    with pytest.raises(ValueError, match=message):
        Shards(folder)


@pytest.mark.parametrize("contents", ["", "[]", "{}"])
def test_a_manifest_of_something_else_is_an_error(folder, contents):
    (folder / "manifest.json").write_text(contents)
    expected = r"manifest\.json: expected the manifest of an export"
    with pytest.raises(ValueError, match=expected):
        Shards(folder)


def test_a_folder_without_manifest_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.json: No such file"):
        Shards(tmp_path)


@pytest.mark.parametrize("suffix", ["", ".index"])
def test_a_missing_file_is_named(folder, suffix):
    path = shard(folder, 1)
    path = path.with_name(path.name + suffix)
    path.unlink()
    with pytest.raises(ValueError, match=re.escape(f"{path}: missing, expected as")):
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
    start = data.index(tiny_export.serialized(tiny_export.sample(5)))
    data[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(RecordError, match=r"record 2 of .*train-00001-of-00002"):
        shards[5]
    assert isinstance(shards[4], records.Sample)


@pytest.fixture
def store(folder):
    """The same export in an object store."""
    with served_store.serve("gs") as server:
        served_store.upload(server, folder, "run")
        yield server


URL = "gs://bucket/run"


def reads(store):
    """(file, range) of each read of the store since its requests were forgotten."""
    found = (r for r in store.requests if r.operation == "get")
    return [(r.key.rsplit("/", 1)[-1], r.headers.get("range")) for r in found]


def test_an_object_store_holds_the_same_samples(folder, store):
    local, remote = Shards(folder), Shards(URL + "/")
    assert [remote[i] for i in range(7)] == [local[i] for i in range(7)]
    assert remote.fingerprint == local.fingerprint
    assert remote.place(5) == f"record 2 of {URL}/train-00001-of-00002.tfrecord"


def test_opening_a_store_reads_the_manifest_and_lists_once(store):
    assert len(Shards(URL)) == 7
    assert reads(store) == [("manifest.json", None)] * 2  # of which one only asks
    assert store.counts() == {"get": 2, "list": 1}


def test_a_block_comes_with_one_request_and_one_for_its_index(store):
    shards = Shards(URL).in_blocks(2, n_kept=5)
    store.forget_requests()
    for _ in range(2):
        for i in (6, 0, 2, 4, 1, 3, 5):
            assert shards[i] == tiny_export.sample(i)
    names = sorted(name.partition("tfrecord")[2] for name, _ in reads(store))
    # Block 1 spans both shards: the first has 3 records.
    assert names == [""] * 5 + [".index"] * 5
    assert len(set(reads(store))) == len(store.requests) == 10


def test_blocks_that_are_not_kept_are_read_again(store):
    shards = Shards(URL).in_blocks(1, n_kept=2)
    store.forget_requests()
    for i in (0, 1, 0, 2, 0, 1):
        assert shards[i] == tiny_export.sample(i)
    assert len(store.requests) == 1 + 4  # 1 has left when it is asked for again


def test_a_request_that_fails_is_made_again(store):
    shards = Shards(URL)
    store.answers = lambda request: Reply(403)
    with pytest.raises(PermissionError, match="gs://bucket/run/train"):
        shards[0]
    store.answers = lambda request: None
    assert shards[0] == tiny_export.sample(0)


def test_threads_that_want_one_block_share_its_request(store):
    shards = Shards(URL).in_blocks(4, n_kept=2)
    store.forget_requests()
    with futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(shards.__getitem__, [0, 1, 2] * 8))
    assert found == [tiny_export.sample(i) for i in (0, 1, 2)] * 8
    assert len(store.requests) == 2


def test_remote_shards_are_cheap_to_send_and_leave_their_blocks_behind(store):
    shards = Shards(URL).in_blocks(4, n_kept=2)
    first = shards[0]
    data = pickle.dumps(shards)
    assert len(data) < 1500
    assert pickle.loads(data)[0] == first


@pytest.mark.parametrize("suffix", ["", ".index"])
def test_what_is_cut_in_a_store_is_found_before_any_work(store, suffix):
    path = "bucket", f"run/train-00001-of-00002.tfrecord{suffix}"
    store.objects[path] = store.objects[path][:-16]
    with pytest.raises(ValueError, match=rf"{URL}/train-00001.*expected \d+"):
        Shards(URL)
    del store.objects[path]
    with pytest.raises(ValueError, match=f"tfrecord{suffix}: missing"):
        Shards(URL)


def test_a_store_without_an_export_is_an_error(store):
    expected = "gs://bucket/none/manifest.json: No such file or directory"
    with pytest.raises(ValueError, match=expected):
        Shards("gs://bucket/none")


def test_a_broken_record_of_a_block_is_named_and_the_others_are_read(store):
    path = "bucket", "run/train-00000-of-00002.tfrecord"
    shards, data = Shards(URL).in_blocks(3, 1), bytearray(store.objects[path])
    data[0] ^= 1
    store.objects[path] = bytes(data)
    with pytest.raises(RecordError, match=f"record 0 of {URL}/train-00000"):
        shards[0]
    assert [shards[i].sample_id for i in (1, 2)] == [
        tiny_export.sample(i).sample_id for i in (1, 2)
    ]


@pytest.mark.parametrize("offset", [0, 13, 1 << 40, 1 << 63])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_index_that_points_out_of_its_block_is_found(store, offset, number):
    path = "bucket", "run/train-00000-of-00002.tfrecord.index"
    entries = bytearray(store.objects[path])
    entries[16 * number : 16 * number + 8] = offset.to_bytes(8, "little")
    store.objects[path] = bytes(entries)
    with pytest.raises(RecordError, match=f"record {number} of .*, expected"):
        Shards(URL).in_blocks(3, 1)[number]


def test_an_unknown_scheme_is_an_error():
    with pytest.raises(ValueError, match="gopher"):
        Shards("gopher://b")


def test_a_manifest_that_was_swapped_while_shards_opens_is_read_again(
    tmp_path, monkeypatch
):
    samples = [tiny_export.sample(i) for i in range(3)]
    folder = tiny_export.write(tmp_path / "tfrecords", samples, n_shards=1)
    newer = tiny_export.write(tmp_path / "newer", samples[:2], n_shards=1)
    list_folder = files.list_folder

    def swap_and_list(path):
        if newer.exists():
            (folder / "train-00000-of-00001.tfrecord").unlink()
            for found in newer.iterdir():
                found.replace(folder / found.name)
            newer.rmdir()
        return list_folder(path)

    monkeypatch.setattr(files, "list_folder", swap_and_list)
    assert len(Shards(folder)) == 2
    (folder / "train-00000-of-00001.tfrecord").unlink()
    with pytest.raises(ValueError, match="missing, expected as the manifest names it"):
        Shards(folder)
