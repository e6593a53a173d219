"""Every function of `files` on S3 and Cloud Storage, with the requests it makes."""

import collections
import glob
import multiprocessing
import os
import time
from concurrent import futures
from pathlib import Path

import pytest

from pipeline.storage import files, object_store, retries
from pipeline.storage.chosen_ranges import read_ranges
from tests.support.fake_object_store import Upload

ODD_NAMES = ("a b", "a%20b", "a#b", "a+b", "ä€😀", "a[1]", "a*?", "a&<'\"", "~a=b;c,@")
OTHER_SPELLING = {"s3://bucket": "s3a://bucket", "gs://bucket": "gcs://bucket"}


@pytest.fixture
def counted(server, bucket):
    """Calls a function and gives its result and its requests."""

    def call(function, *args, **kwargs):
        server.forget_requests()
        result = function(*args, **kwargs)
        return result, dict(server.counts())

    files.is_file(f"{bucket}/warm-up")  # asks for the region of the bucket
    return call


def test_each_function_makes_the_requests_it_needs(bucket, counted):
    path, data = f"{bucket}/run/t.parquet", b"0123456789"
    assert counted(files.write, path, data) == (None, {"put": 1})
    assert counted(files.read, path) == (data, {"get": 1})
    assert counted(files.read_range, path, 2, 3) == (b"234", {"get": 1})
    assert counted(files.is_file, path) == (True, {"head": 1})
    facts, requests = counted(files.facts, path)
    assert (facts.path, facts.n_bytes, requests) == (path, 10, {"head": 1})
    assert counted(files.mark, path) == (facts.mark, {"head": 1})
    assert counted(files.find, path) == ((path,), {"head": 1})
    for pattern in (f"{bucket}/run/*.parquet", f"{bucket}/run/**"):
        assert counted(files.sizes, pattern) == ({path: 10}, {"list": 1})
        assert counted(files.marks, pattern) == ({path: facts.mark}, {"list": 1})
    for folder in (f"{bucket}/run", f"{bucket}/run/"):
        assert counted(files.list_folder, folder) == ({path: 10}, {"list": 1})
        below = counted(files.list_below, folder)
        assert below == ({"t.parquet": facts}, {"list": 1})
    assert counted(files.folders, bucket) == (frozenset({"run"}), {"list": 1})
    assert counted(files.delete, f"{bucket}/run", ["t.parquet"])[1].keys() <= {
        "delete",
        "delete_many",
    }
    assert counted(files.is_file, path) == (False, {"head": 1})


@pytest.mark.parametrize("n_bytes", [0, 1, 100])
def test_an_open_file_is_one_request(bucket, counted, n_bytes):
    path, data = f"{bucket}/a", os.urandom(n_bytes)
    files.write(path, data)

    def read_by(function):
        with function(path) as file:
            return file.read()

    for function in (files.open_stream, files.open_for_reading):
        found, requests = counted(read_by, function)
        assert found == data
        assert requests == {"get": 1}


def test_a_file_of_no_bytes_is_a_file(bucket):
    path = f"{bucket}/a/empty"
    files.write(path, b"")
    assert files.read(path) == b""
    assert files.is_file(path)
    assert files.sizes(f"{bucket}/a/*") == {path: 0}
    assert files.read_range(path, 0, 10) == b""
    assert list(read_ranges(path, [(0, 10), (3, 2)])) == [b"", b""]
    assert files.read_end(path, 10) == (b"", 0)


def test_a_range_ends_where_the_file_does(bucket):
    path = f"{bucket}/a"
    files.write(path, b"0123456789")
    spans = [(0, 2), (8, 5), (10, 5), (99, 1), (3, 0)]
    expected = [b"01", b"89", b"", b"", b""]
    assert [files.read_range(path, *span) for span in spans] == expected
    assert list(read_ranges(path, spans)) == expected
    assert list(read_ranges(path, [])) == []


def test_the_end_of_a_file_comes_with_its_size(bucket):
    path = f"{bucket}/a"
    files.write(path, b"0123456789")
    assert files.read_end(path, 3) == (b"789", 10)
    assert files.read_end(path, 99) == (b"0123456789", 10)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_used_as_they_are(server, bucket, name):
    path = f"{bucket}/run/{name}/{name}"
    files.write(path, b"x")
    assert list(server.objects) == [("bucket", f"run/{name}/{name}")]
    assert files.read(path) == b"x"
    assert files.list_folder(f"{bucket}/run/{name}") == {path: 1}
    assert files.list_folder(f"{bucket}/run/{name}", prefix=name[:2]) == {path: 1}
    assert files.list_below(f"{bucket}/run").keys() == {f"{name}/{name}"}
    assert files.folders(f"{bucket}/run") == {name}
    assert files.find(glob.escape(path)) == (path,)
    assert files.find(f"{bucket}/run/*/*") == (path,)
    files.delete_folder(f"{bucket}/run", name)
    assert not server.objects


def test_names_that_differ_in_case_are_two_files(server, bucket):
    files.write(f"{bucket}/a/T", b"upper")
    files.write(f"{bucket}/a/t", b"lower")
    assert files.read(f"{bucket}/a/T") == b"upper"
    assert files.find(f"{bucket}/a/t*") == (f"{bucket}/a/t",)
    files.delete(f"{bucket}/a", ["T"])
    assert dict(server.objects) == {("bucket", "a/t"): b"lower"}


def test_both_spellings_of_a_scheme_name_the_same_files(bucket):
    other = OTHER_SPELLING[bucket]
    files.write(f"{other}/a/b/c", b"x")
    assert files.read(f"{bucket}/a/b/c") == files.read(f"{other}/a/b/c") == b"x"
    assert files.list_folder(f"{other}/a/b") == {f"{other}/a/b/c": 1}
    assert files.list_folder(f"{other}/a/b", prefix="c") == {f"{other}/a/b/c": 1}
    assert files.list_below(f"{other}/a").keys() == {"b/c"}
    assert files.folders(f"{other}/a") == {"b"}
    assert len(files.find(f"{other}/a/**")) == 1
    files.delete_folder(other, "a")
    assert not files.is_file(f"{bucket}/a/b/c")


@pytest.mark.parametrize("key", ["a//b", "/a", "a/./b", "a/../b", ".."])
@pytest.mark.parametrize(
    "function",
    [
        files.read,
        files.is_file,
        files.find,
        files.list_folder,
        files.list_below,
        files.open_stream,
        lambda path: files.write(path, b"x"),
    ],
)
def test_a_key_that_stores_read_in_two_ways_is_refused(server, bucket, key, function):
    with pytest.raises(ValueError, match="expected no `//`"):
        function(f"{bucket}/{key}")
    assert not server.requests


@pytest.mark.parametrize("path", ["s3://", "s3:///a", "gs://", "gs:///"])
def test_a_place_without_a_bucket_is_refused(path):
    for function in (files.read, files.find, files.list_folder, files.is_file):
        with pytest.raises(ValueError, match=r"expected .*://BUCKET/KEY"):
            function(path)


def test_a_bucket_alone_is_a_folder_and_no_file(bucket):
    files.write(f"{bucket}/a", b"x")
    for place in (bucket, f"{bucket}/"):
        assert files.list_below(place).keys() == {"a"}
        assert files.list_folder(place) == {f"{bucket}/a": 1}
        assert files.find(f"{bucket}/*") == (f"{bucket}/a",)
        assert not files.is_file(place)
        for function in (files.read, files.open_stream, files.open_for_reading):
            with pytest.raises(OSError, match=bucket):
                function(place)


def test_an_object_is_no_folder(bucket):
    files.write(f"{bucket}/a", b"x")
    assert files.list_folder(f"{bucket}/a") == {}
    assert files.list_below(f"{bucket}/a") == {}
    assert files.folders(f"{bucket}/a") == frozenset()
    assert files.find(f"{bucket}/a/*") == ()
    assert files.find(f"{bucket}/a/**") == ()


def test_a_folder_is_no_file(bucket):
    files.write(f"{bucket}/a/b", b"x")
    assert not files.is_file(f"{bucket}/a")
    assert files.mark(f"{bucket}/a") == ""
    for function in (
        files.read,
        files.open_stream,
        files.open_for_reading,
        files.facts,
    ):
        with pytest.raises(FileNotFoundError):
            function(f"{bucket}/a")


@pytest.mark.parametrize("key", ["run//b", "run/../b"])
def test_a_listing_says_which_key_cannot_be_used(server, bucket, key, monkeypatch):
    monkeypatch.setattr(retries, "DELAY_S", 0.001)
    server.objects["bucket", "run/a"] = server.objects["bucket", key] = b"x"
    for function in (files.list_folder, files.list_below, files.folders):
        with pytest.raises(OSError, match=f'^{bucket}/run: .*"run/') as caught:
            function(f"{bucket}/run")
        assert "\n" not in str(caught.value)


def test_the_object_that_a_console_makes_of_a_folder_is_no_file(server, bucket):
    for key in ("run/", "run/a"):
        server.objects["bucket", key] = b""
    assert files.list_below(f"{bucket}/run").keys() == {"a"}
    assert files.list_folder(f"{bucket}/run") == {f"{bucket}/run/a": 0}
    assert files.find(f"{bucket}/run/**") == (f"{bucket}/run/a",)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", {"a.tar", "b.tar", "b.txt"}),
        ("?.tar", {"a.tar", "b.tar"}),
        ("[!a].t*", {"b.tar", "b.txt"}),
        ("[a].tar", {"a.tar"}),
        ("*/*.tar", {"d/a.tar", "e/a.tar"}),
        ("d/*", {"d/a.tar"}),
        ("d/", {"d/a.tar"}),
        ("?/x/*", {"e/x/c"}),
        ("**/a.tar", {"a.tar", "d/a.tar", "e/a.tar"}),
        ("**", {"a.tar", "b.tar", "b.txt", "d/a.tar", "e/a.tar", "e/x/c"}),
        ("e/**", {"e/a.tar", "e/x/c"}),
        ("none/*", set()),
    ],
)
def test_patterns_match_as_in_a_shell(server, bucket, pattern, names):
    server.page_size = 2
    for name in ("a.tar", "b.tar", "b.txt", "d/a.tar", "e/a.tar", "e/x/c"):
        server.objects["bucket", f"in/{name}"] = b"x"
    found = files.find(f"{bucket}/in/{pattern}")
    assert found == tuple(f"{bucket}/in/{name}" for name in sorted(names))


def test_objects_that_begin_with_a_prefix_are_listed_without_the_others(
    server, bucket, counted
):
    for number in range(5000):
        server.objects["bucket", f"run/t{number:04d}"] = b"x"
    found, requests = counted(files.list_folder, f"{bucket}/run", prefix="t25")
    assert found == {f"{bucket}/run/t{number}": 1 for number in range(2500, 2600)}
    assert requests["list"] <= 2


def test_a_folder_is_deleted_and_its_neighbors_stay(server, bucket):
    for key in ("run/a/b", "run/a/c/d", "run/ab", "run/a.txt"):
        files.write(f"{bucket}/{key}", b"x")
    files.delete_folder(f"{bucket}/run", "a")
    assert {key for _, key in server.objects} == {"run/ab", "run/a.txt"}


def test_many_objects_are_deleted_also_if_some_are_gone(server, bucket):
    names = [f"{number:04d}" for number in range(1100)]
    for name in names[:-100]:
        server.objects["bucket", f"run/{name}"] = b"x"
    files.delete(f"{bucket}/run", names)
    assert not server.objects


def test_a_large_file_is_sent_in_parts(server, bucket, monkeypatch, tmp_path):
    monkeypatch.setattr(object_store, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(object_store, "_MAX_PUT_BYTES", 6 << 20)
    data = os.urandom(17 << 20)
    local = tmp_path / "local"
    local.write_bytes(data)
    files.publish(str(local), f"{bucket}/a")
    files.write(f"{bucket}/b", data)
    assert server.objects["bucket", "a"] == server.objects["bucket", "b"] == data
    assert server.counts()["put_part"] == 8
    assert server.uploads == {}
    assert files.read(f"{bucket}/a") == data


def test_a_local_copy_is_made_once_a_version(bucket):
    path = f"{bucket}/set.faiss"
    copies = []
    for data in (b"one", b"two"):
        files.write(path, data)
        copies.append(Path(files.local_copy(path)))
        assert files.local_copy(path) == str(copies[-1])
    assert [copy.read_bytes() for copy in copies] == [b"one", b"two"]
    for copy in copies:
        copy.unlink()


def test_of_many_writers_one_creates(bucket):
    path = f"{bucket}/lock"
    with futures.ThreadPoolExecutor(16) as executor:
        texts = [str(number).encode() for number in range(64)]
        won = list(executor.map(lambda text: files.create(path, text), texts))
    assert sum(won) == 1
    assert files.read(path) == texts[won.index(True)]


def test_of_many_writers_one_replaces_what_all_have_read(bucket):
    path = f"{bucket}/lock"
    files.write(path, b"first")
    _, version = files.read_with_version(path)
    texts = [str(number).encode() for number in range(64)]
    with futures.ThreadPoolExecutor(16) as executor:
        won = list(executor.map(lambda text: files.replace(path, text, version), texts))
    assert sum(won) == 1
    data, new_version = files.read_with_version(path)
    assert data == texts[won.index(True)]
    assert new_version != version


def test_what_is_gone_is_not_replaced(server, bucket):
    path = f"{bucket}/lock"
    files.write(path, b"first")
    _, version = files.read_with_version(path)
    files.delete(bucket, ["lock"])
    assert not files.replace(path, b"second", version)
    assert not server.objects


def test_threads_share_one_client(server, bucket):
    with futures.ThreadPoolExecutor(16) as executor:
        paths = [f"{bucket}/{number}" for number in range(64)]
        list(executor.map(lambda path: files.write(path, b"x"), paths))
    assert server.counts()["put"] == 64
    assert server.counts()["head_bucket"] <= 1


def read_in_child(path: str) -> bytes:
    with files.open_stream(path) as stream, files.open_for_reading(path) as ranges:
        return files.read(path) + stream.read() + ranges.read()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_reads_what_its_parent_wrote(bucket, method):
    """Also a forked one, though the parent has used the library."""
    path = f"{bucket}/a"
    files.write(path, b"x")
    context = multiprocessing.get_context(method)
    with futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        calls = [executor.submit(read_in_child, path) for _ in range(4)]
        assert [call.result(timeout=60) for call in calls] == [b"xxx"] * 4
    assert read_in_child(path) == b"xxx"


def test_a_listing_is_not_held_up_by_its_depth(server, bucket, counted):
    for number in range(20):
        server.objects["bucket", f"in/{number:02d}/a.tar"] = b"x"
        server.objects["bucket", f"other/{number:02d}/a.tar"] = b"x"
    found, requests = counted(files.find, f"{bucket}/in/1*/*.tar")
    assert len(found) == 10
    assert requests == collections.Counter({"list": 11})


def test_uploads_that_killed_writers_left_are_ended(server, bucket):
    for number, key in enumerate(("run/a b#%+ä", "run/c/d", "running", "other/a")):
        server.uploads[str(number)] = Upload(("bucket", key))
    assert files.abort_uploads(f"{bucket}/run") == 2
    assert {upload.key[1] for upload in server.uploads.values()} == {
        "running",
        "other/a",
    }


def test_many_files_are_read_at_the_same_time_and_in_order(server, bucket, tmp_path):
    paths = [f"{bucket}/run/{number:03d}" for number in range(300)]
    for number in range(300):
        if number != 150:
            server.objects["bucket", f"run/{number:03d}"] = str(number).encode()
    found = list(files.read_many(paths))
    missing = found.pop(150)
    assert isinstance(missing, FileNotFoundError)
    assert list(map(int, found)) == [*range(150), *range(151, 300)]
    (tmp_path / "a").write_bytes(b"x")
    there, gone = files.read_many([str(tmp_path / "a"), str(tmp_path / "b")])
    assert there == b"x"
    assert isinstance(gone, FileNotFoundError)
    assert list(files.read_many([])) == []


def test_files_that_nobody_took_hold_up_the_reading_of_more(server, bucket):
    for number in range(300):
        server.objects["bucket", f"run/{number:03d}"] = b"x"
    found = files.read_many([f"{bucket}/run/{number:03d}" for number in range(300)])
    assert next(found) == b"x"
    time.sleep(0.5)
    assert server.counts()["get"] <= 66
    assert len(list(found)) == 299
