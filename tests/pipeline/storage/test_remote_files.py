"""Open files of stores give the same bytes as files of this machine."""

import io
import itertools
import os
import pickle
import tarfile

import hypothesis
import pytest
from hypothesis import strategies as st

from pipeline.storage import files, remote_files
from pipeline.storage.file_facts import FileFacts
from tests.support.quick_http import Reply

SIZES = (0, 1, 63, 64, 65, 1000)
NUMBERS = st.integers(0, 1100)
STEPS = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 300)),
    st.tuples(st.just("readinto"), st.integers(0, 300)),
    st.tuples(st.just("seek"), NUMBERS),
    st.tuples(st.just("skip"), NUMBERS),
    st.tuples(st.just("back"), NUMBERS),
    st.tuples(st.just("from_end"), NUMBERS),
    st.tuples(st.just("readline"), st.just(0)),
)


@pytest.fixture
def small_chunks(monkeypatch):
    """So that objects of some bytes have many chunks, windows and far seeks."""
    monkeypatch.setattr(remote_files, "_CHUNK_BYTES", 64)
    monkeypatch.setattr(remote_files, "_BUFFER_BYTES", 16)
    monkeypatch.setattr(remote_files, "_MAX_SKIPPED_BYTES", 100)
    monkeypatch.setattr(remote_files, "_TAIL_BYTES", 50)
    monkeypatch.setattr(remote_files, "_MIN_WINDOW_BYTES", 32)
    monkeypatch.setattr(remote_files, "_MAX_WINDOW_BYTES", 128)


@pytest.fixture
def contents(bucket) -> dict[str, bytes]:
    """The URL of an object to its bytes, of several sizes."""
    contents = {f"{bucket}/{size}": os.urandom(size) for size in SIZES}
    for path, data in contents.items():
        files.write(path, data)
    return contents


def take(file, step: str, number: int) -> object:
    """What a step gives, and where it leads."""
    if step == "read":
        return file.read(number), file.tell()
    if step == "readinto":
        buffer = bytearray(number)
        return file.readinto(buffer), bytes(buffer), file.tell()
    if step == "readline":
        return file.readline(), file.tell()
    if step == "seek":
        return file.seek(number)
    if step == "skip":
        return file.seek(number, io.SEEK_CUR)
    if step == "back":
        return file.seek(max(0, file.tell() - number))
    size = file.seek(0, io.SEEK_END)
    return size, file.seek(max(0, size - number))


@pytest.mark.parametrize("function", [files.open_stream, files.open_for_reading])
@hypothesis.settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=st.data())
@pytest.mark.usefixtures("small_chunks")
def test_steps_through_a_file_give_what_memory_gives(contents, function, data):
    path = data.draw(st.sampled_from(sorted(contents)))
    steps = data.draw(st.lists(STEPS, max_size=12))
    memory = io.BytesIO(contents[path])
    with function(path) as file:
        for step, number in steps:
            assert take(file, step, number) == take(memory, step, number)


@pytest.mark.parametrize("function", [files.open_stream, files.open_for_reading])
def test_a_place_before_the_start_is_refused(contents, function):
    for path, data in contents.items():
        for offset, whence in ((-1, io.SEEK_SET), (-len(data) - 1, io.SEEK_END)):
            with function(path) as file, pytest.raises((OSError, ValueError)):
                file.seek(offset, whence)


def test_a_tar_is_one_request(server, bucket):
    buffer = io.BytesIO()
    texts = {f"{number:03d}.txt": os.urandom(3000) for number in range(100)}
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in texts.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    files.write(f"{bucket}/a.tar", buffer.getvalue())
    server.forget_requests()
    for mode in ("r|", "r:"):
        with (
            files.open_stream(f"{bucket}/a.tar") as file,
            tarfile.open(fileobj=file, mode=mode) as tar,
        ):
            found = {one.name: tar.extractfile(one).read() for one in tar}
        assert found == texts
    assert server.counts() == {"get": 2}


@pytest.mark.usefixtures("small_chunks")
def test_a_stream_goes_on_where_its_body_was_cut(server, bucket):
    data = os.urandom(1000)
    files.write(f"{bucket}/a", data)
    numbers = itertools.count()

    def cut(request):
        if request.operation != "get" or next(numbers) > 4:
            return None
        start = int(request.headers.get("range", "bytes=0-")[6:].partition("-")[0])
        headers = {
            "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}",
            "ETag": server.objects.entry(("bucket", "a")).etag,
            "Last-Modified": "Mon, 30 Nov 2026 07:00:00 GMT",
        }
        return Reply(206 if start else 200, data[start:], headers, n_bytes_sent=100)

    server.answers = cut
    with files.open_stream(f"{bucket}/a") as file:
        assert file.read() == data


def test_facts_are_pickled(bucket):
    files.write(f"{bucket}/a", b"x")
    facts = files.facts(f"{bucket}/a")
    assert isinstance(facts, FileFacts)
    assert pickle.loads(pickle.dumps(facts)) == facts
