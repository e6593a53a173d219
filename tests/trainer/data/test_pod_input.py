"""Hosts with loader processes, simulated in this process: each has its own reader."""

import dataclasses
import logging
import pathlib
import pickle
import time

import numpy as np
import pytest

from tests.support import served_store, tiny_export
from trainer.config import RunConfig
from trainer.data.batch_stream import BatchParts, make_parts, stream_batches
from trainer.data.batches import ViewSample
from trainer.data.mixture import Mixture
from trainer.data.shards import Shards
from trainer.data.text_tokenizer import Tokenizer

N_ROWS = 16
SHARED_MEMORY = pathlib.Path("/dev/shm")


STORE = "s3://bucket/sets"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """96 samples as one set, and as two of 32 and 64."""
    path = tmp_path_factory.mktemp("sets")
    samples = [tiny_export.sample(number) for number in range(96)]
    for name, part in (("all", (0, 96)), ("few", (0, 32)), ("many", (32, 96))):
        tiny_export.write(path / name, samples[slice(*part)], 3)
    return path


@pytest.fixture(scope="module")
def store(folder):
    """The same in an object store."""
    with served_store.serve("s3") as server:
        served_store.upload(server, folder, "sets")
        yield server


def view_of(tiny, place, *names, **changes) -> ViewSample:
    weights = {"few": 1.0, "many": 2.0} if len(names) > 1 else None
    settings = {"batch_size": N_ROWS, "n_records_per_block": 5, "n_streams": 8}
    return ViewSample(
        Mixture({name: Shards(f"{place}/{name}") for name in names}, weights),
        Tokenizer(tiny.data.tokenizer, tiny.model.text.max_tokens),
        dataclasses.replace(tiny.data, **settings | changes),
        tiny.rng_seed,
        tiny.self_supervision,
        tiny.model.vision.patch_size_px,
    )


class Pod:
    """The loader processes of all hosts, each with what it was sent at its start."""

    def __init__(self, view: ViewSample, n_hosts: int, n_workers: int):
        self._workers: list[list[BatchParts]] = []
        for host in range(n_hosts):
            parts = pickle.dumps(make_parts(view, 1, n_workers, host, n_hosts))
            self._workers.append([pickle.loads(parts) for _ in range(n_workers)])

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The rows of all hosts in one batch."""
        n_hosts, n_workers = len(self._workers), len(self._workers[0])
        found: dict[str, np.ndarray] = {}
        for host, workers in enumerate(self._workers):
            for worker, make in enumerate(workers):
                for name, rows in make(step * n_workers + worker).items():
                    if name not in found:
                        n_rows = make.view.config.batch_size
                        shape = (n_rows, *rows.shape[1:])
                        found[name] = np.empty(shape, rows.dtype)
                    found[name][host::n_hosts][worker::n_workers] = rows
        return found


def take_from_one_host(view: ViewSample, steps: range) -> list[dict[str, np.ndarray]]:
    stream = stream_batches(view, RunConfig(n_threads=1))
    stream.set_state({"global_next_index": steps.start * view.config.batch_size})
    taken = [next(stream) for _ in steps]
    stream.close()
    return taken


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def n_bytes_of(store, *names) -> int:
    """Bytes of the shards and indexes of sets."""
    folders = tuple(f"sets/{name}/" for name in names)
    return sum(
        len(data)
        for (_, key), data in store.objects.items()
        if key.startswith(folders) and "tfrecord" in key
    )


PODS = [(1, 2), (2, 2), (4, 2), (8, 1), (1, 8)]


@pytest.mark.parametrize(("n_hosts", "n_workers"), PODS)
@pytest.mark.parametrize("names", [("all",), ("few", "many")])
def test_a_pod_shows_what_one_host_does_and_reads_each_byte_once_an_epoch(
    store, folder, tiny, n_hosts, n_workers, names
):
    # An epoch of each set.
    expected = take_from_one_host(view_of(tiny, folder, *names), range(6))
    pod = Pod(view_of(tiny, STORE, *names), n_hosts, n_workers)
    store.n_bytes_read = 0
    for step, batch in enumerate(expected):
        assert_equal(pod.batch(step), batch)
    # Streams of a mixture may end an epoch a row apart, and have begun a block.
    most = 1.0 if len(names) == 1 else 1.35
    assert 1 <= store.n_bytes_read / n_bytes_of(store, *names) <= most


def test_a_pod_of_another_size_goes_on_where_one_stopped(store, folder, tiny):
    local = view_of(tiny, folder, "few", "many")
    expected = take_from_one_host(local, range(5, 9))
    view = view_of(tiny, STORE, "few", "many")
    for n_hosts, n_workers in PODS:
        pod = Pod(view, n_hosts, n_workers)
        for step, batch in enumerate(expected, 5):
            assert_equal(pod.batch(step), batch)


def test_hosts_that_streams_do_not_divide_show_the_same_and_share_blocks(
    store, folder, tiny
):
    local = view_of(tiny, folder, "all", n_streams=1)
    expected = take_from_one_host(local, range(6))
    pod = Pod(view_of(tiny, STORE, "all", n_streams=1), 2, 2)
    store.n_bytes_read = 0
    for step, batch in enumerate(expected):
        assert_equal(pod.batch(step), batch)
    assert store.n_bytes_read > 3 * n_bytes_of(store, "all")


def test_processes_that_share_blocks_are_told_so(store, tiny, caplog):
    with caplog.at_level(logging.WARNING):
        stream_batches(
            view_of(tiny, STORE, "all"), RunConfig(n_workers=2), shard_count=4
        )
        assert not caplog.messages
        stream_batches(
            view_of(tiny, STORE, "all"), RunConfig(n_workers=2), shard_count=8
        )
    (message,) = caplog.messages
    assert message.startswith(
        "data.n_streams=8: expected a multiple of 16, which are 8 hosts with 2 loader"
    )


def test_more_processes_than_rows_are_not_started(store, tiny):
    stream = stream_batches(
        view_of(tiny, STORE, "all"), RunConfig(n_workers=9), shard_count=8
    )
    assert stream.n_parts == 2


@pytest.mark.slow
def test_loader_processes_that_are_far_ahead_lose_no_rows(folder, tiny):
    view = view_of(tiny, folder, "all")
    expected = take_from_one_host(view, range(30))
    before = {*SHARED_MEMORY.iterdir()}
    stream = stream_batches(view, RunConfig(n_workers=3, n_threads=2))
    for batch in expected:
        assert_equal(next(stream), batch)
        time.sleep(0.1)  # for many batches of 16 rows
    assert {*SHARED_MEMORY.iterdir()} - before
    stream.close()
    assert {*SHARED_MEMORY.iterdir()} <= before


def test_blocks_are_forgotten_when_all_of_their_records_were_shown(store, tiny):
    view = view_of(tiny, STORE, "all", n_blocks_per_window=1)
    make = make_parts(view, 1)
    (shards,) = make.view.shards._sets
    n_kept = []
    for step in range(6):
        make(step)
        n_kept.append(len(shards._blocks._blocks._slots))
    assert max(n_kept) <= 8 + 3  # a block of each stream; some span two shards
    assert n_kept[-1] == 0  # at the end of the epoch


@pytest.mark.slow
def test_128_hosts_with_8_processes_read_each_byte_once_an_epoch(
    tiny, tmp_path_factory
):
    """24,576 samples in 2,458 blocks: 1,024 streams, of which each cuts some."""
    folder = tmp_path_factory.mktemp("large")
    images = [tiny_export.sample(number).image for number in range(64)]
    samples = [
        tiny_export.sample(0, image=images[i % 64], sample_id=i.to_bytes(16))
        for i in range(24_576)
    ]
    tiny_export.write(folder / "all", samples, 7)
    view = view_of(
        tiny, folder, "all", batch_size=2048, n_streams=1024,
        n_records_per_block=10, n_blocks_per_window=1,
    )  # fmt: skip
    expected = take_from_one_host(view, range(12))
    with served_store.serve("s3") as store:
        served_store.upload(store, folder, "sets")
        remote = Mixture({"all": Shards(f"{STORE}/all")})
        view = dataclasses.replace(view, shards=remote)
        pod = Pod(view, 128, 8)
        store.n_bytes_read = 0
        for step, batch in enumerate(expected):
            assert_equal(pod.batch(step), batch)
        share = store.n_bytes_read / n_bytes_of(store, "all")
        assert share == pytest.approx(1, abs=0.02)
        resumed = Pod(view, 32, 4)
        for step in (5, 6):
            assert_equal(resumed.batch(step), expected[step])
