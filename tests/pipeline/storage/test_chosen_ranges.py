"""Chosen ranges are those of the files, and cost what is promised."""

import os

import hypothesis
import pytest
from hypothesis import strategies as st

from pipeline.storage import chosen_ranges, files
from pipeline.storage.chosen_ranges import Span, read_ranges, read_spans

SIZES = (0, 1, 63, 1000)
NUMBERS = st.integers(0, 1100)
MANY_EXAMPLES = hypothesis.settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def small_bounds(monkeypatch):
    """So that a few spans of some bytes meet every bound."""
    monkeypatch.setattr(chosen_ranges, "MAX_REQUESTS_AT_ONCE", 3)
    monkeypatch.setattr(chosen_ranges, "MAX_BYTES_AT_ONCE", 500)
    monkeypatch.setattr(chosen_ranges, "_MAX_REQUEST_BYTES", 300)
    monkeypatch.setattr(chosen_ranges, "_MAX_GAP_BYTES", 20)


@pytest.fixture(params=["disk", "s3", "gs"])
def place(request, server, tmp_path) -> str:
    """A folder of this machine, or of a store."""
    if request.param == "disk":
        return str(tmp_path)
    return f"{server.bucket_url(request.param)}/folder"


@pytest.fixture
def contents(place) -> dict[str, bytes]:
    """The path of a file to its bytes, of several sizes."""
    contents = {files.join(place, str(size)): os.urandom(size) for size in SIZES}
    for path, data in contents.items():
        files.write(path, data)
    return contents


@MANY_EXAMPLES
@hypothesis.given(data=st.data())
@pytest.mark.usefixtures("small_bounds")
def test_spans_of_files_are_those_of_memory(contents, data):
    paths = st.sampled_from(sorted(contents))
    span = st.builds(Span, paths, NUMBERS, st.integers(0, 600))
    spans = data.draw(st.lists(span, max_size=12))
    expected = [contents[one.path][one.start : one.start + one.length] for one in spans]
    assert list(read_spans(spans)) == expected


@st.composite
def spans_in_order(draw) -> list[Span]:
    """Spans of shards, near and far from each other."""
    spans, position = [], 0
    for gap, length in draw(
        st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 100_000)))
    ):
        spans.append(Span("s3://bucket/a", position + gap, length))
        position += gap + length
    return spans


@hypothesis.given(spans=spans_in_order(), scale=st.sampled_from([1, 20, 400]))
def test_requests_read_at_most_a_fifth_more_than_is_wanted(spans, scale):
    spans = [one._replace(start=one.start // scale) for one in spans]
    requests = list(chosen_ranges._join_near(spans))
    assert [one for request in requests for one in request.spans] == spans
    n_wanted = n_read = 0
    for request in requests:
        for one in request.spans:
            assert request.start <= one.start
            assert one.start + one.length <= request.start + request.length
        n_wanted += sum(one.length for one in request.spans)
        n_read += request.length
        assert n_read <= 1.2 * n_wanted
        assert request.length <= 4 << 20 or len(request.spans) == 1


def test_neighbors_share_requests(server, bucket):
    path, data = f"{bucket}/a", os.urandom(1 << 16)
    files.write(path, data)
    spans = [(start, 900) for start in range(0, 1 << 16, 1000)]
    server.forget_requests()
    found = list(read_ranges(path, spans))
    assert found == [data[start : start + 900] for start, _ in spans]
    assert server.counts() == {"get": 1}


def test_far_spans_bring_nothing_else(server, bucket):
    path, data = f"{bucket}/a", os.urandom(1 << 20)
    files.write(path, data)
    spans = [(start, 1000) for start in range(0, 1 << 20, 100_000)]
    server.forget_requests()
    found = list(read_ranges(path, spans))
    assert found == [data[start : start + 1000] for start, _ in spans]
    assert server.n_bytes_read == 1000 * len(spans)


def test_a_slow_store_is_asked_for_many_spans_at_once(server, bucket):
    files.write(f"{bucket}/a", bytes(64))
    spans = [Span(f"{bucket}/a", start, 1) for start in range(64)]
    far = [one._replace(path=f"{bucket}/{n % 2}") for n, one in enumerate(spans)]
    for name in "01":
        files.write(f"{bucket}/{name}", bytes(64))
    server.forget_requests()
    server.latency_s = 0.25  # long, for busy machines
    assert list(read_spans(far)) == [b"\0"] * 64
    assert 20 <= server.max_open <= chosen_ranges.MAX_REQUESTS_AT_ONCE


def test_no_more_is_read_than_the_bound_of_memory(server, bucket, monkeypatch):
    monkeypatch.setattr(chosen_ranges, "MAX_BYTES_AT_ONCE", 10_000)
    files.write(f"{bucket}/a", bytes(1 << 20))
    lengths = [3000, 3000, 3000, 3000, 20_000, 3000, 9000, 3000]
    spans = [(100_000 * number, length) for number, length in enumerate(lengths)]
    server.forget_requests()
    n_given = 0
    for data in read_ranges(f"{bucket}/a", spans):
        n_held = server.n_bytes_read - n_given
        assert n_held <= max(10_000, len(data))
        n_given += len(data)
    assert n_given == sum(lengths)


def test_a_missing_file_is_the_error_of_its_spans_alone(contents, place):
    missing = files.join(place, "missing")
    (path,) = (path for path in contents if path.endswith("/1000"))
    spans = [Span(path, 0, 10), Span(missing, 0, 1), Span(missing, 500, 1)]
    first, *errors, last = read_spans([*spans, Span(path, 900, 10)])
    assert (first, last) == (contents[path][:10], contents[path][900:910])
    assert [type(error) for error in errors] == [FileNotFoundError] * 2
    with pytest.raises(FileNotFoundError):
        list(read_ranges(missing, [(0, 1)]))


def test_a_folder_is_no_file(tmp_path):
    (error,) = read_spans([Span(str(tmp_path), 0, 1)])
    assert isinstance(error, IsADirectoryError)


def test_a_failure_of_the_store_is_raised(server, bucket):
    files.write(f"{bucket}/a", b"x")
    server.required_token = "another"
    with pytest.raises(OSError, match="credentials are needed"):
        list(read_spans([Span(f"{bucket}/a", 0, 1)]))


def test_files_are_closed_also_where_reading_ends_early(tmp_path):
    paths = [str(tmp_path / str(number)) for number in range(4)]
    for path in paths:
        files.write(path, b"x")
    spans = [Span(path, 0, 1) for path in paths]
    n_open = len(os.listdir("/proc/self/fd"))
    assert list(read_spans(spans)) == [b"x"] * 4
    assert len(os.listdir("/proc/self/fd")) == n_open
    found = read_spans(spans)
    assert next(found) == b"x"
    found.close()
    assert len(os.listdir("/proc/self/fd")) == n_open
