"""Runs in `s3://`, `gs://` and `az://` on real servers of this machine.

S3 is led to by flags, the others by environment variables.
"""

import dataclasses
import glob
import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import run
from pipeline.config.curation import ImageTextSource
from pipeline.demo_web import crawl
from pipeline.engine import run_lock
from pipeline.sources.shards import Shard, read_pairs
from pipeline.storage import files
from tests.support import object_servers
from tests.support.signed_requests import send

pytestmark = pytest.mark.cloud

LARGE = 70 << 20  # bytes: more than one put takes


START = {
    "s3": object_servers.start_s3,
    "gs": object_servers.start_gcs,
    "az": object_servers.start_azure,
}


@dataclasses.dataclass(frozen=True)
class Store:
    """A bucket, and the flags that lead there."""

    bucket: str
    flags: tuple[str, ...]
    server: object_servers.Server


@pytest.fixture(scope="module", params=START)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with START[request.param]() as server, pytest.MonkeyPatch.context() as patch:
        found = server.environment
        flags: tuple[str, ...] = ()
        if server.scheme == "s3":
            flags = (
                f"--s3_endpoint_url={server.url}",
                f"--s3_region_name={found['AWS_REGION']}",
                f"--s3_access_key_id={found['AWS_ACCESS_KEY_ID']}",
                f"--s3_secret_access_key={found['AWS_SECRET_ACCESS_KEY']}",
            )
        else:
            for name, value in found.items():
                patch.setenv(name, value)
        files.use_options(PipelineOptions(list(flags)))
        yield Store(server.bucket, flags, server)
        assert object_servers.open_uploads(server) == []
    files.use_options(PipelineOptions([]))


@pytest.fixture
def folder(store: Store, request: pytest.FixtureRequest) -> str:
    return f"{store.bucket}/{re.sub(r'[^a-z0-9]+', '-', request.node.name)}"


@pytest.mark.parametrize("n_bytes", [1, LARGE])
def test_written_files_are_read_and_listed(folder, n_bytes):
    path, data = files.join(folder, "a", "b.bin"), os.urandom(n_bytes)
    assert not files.is_file(path)
    files.write(path, data)
    files.write(path, data)
    assert files.is_file(path)
    assert files.read(path) == data
    assert files.sizes(files.join(folder, "**")) == {path: n_bytes}
    assert files.folders(folder) == {"a"}
    with files.open_for_reading(path) as file:
        file.seek(n_bytes // 2)
        assert file.read(7) == data[n_bytes // 2 :][:7]


def test_listings_of_many_pages_are_complete(folder):
    paths = [files.join(folder, f"{i:03d}") for i in range(30)]
    for path in paths:
        files.write(path, b"x")
    assert files.find(files.join(folder, "*")) == tuple(paths)


def test_a_folder_is_removed_and_its_neighbor_stays(folder):
    inside, beside = files.join(folder, "a", "b"), files.join(folder, "ab")
    files.write(inside, b"x")
    files.write(beside, b"x")
    files.delete_folder(folder, "a")
    assert files.find(files.join(folder, "**")) == (beside,)


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?", "a#%41", "a b"])
def test_a_folder_name_is_not_read_as_a_pattern(store, name):
    folder = f"{store.bucket}/odd-{name.encode().hex()}"
    neighbor = files.join(folder, "a1", "x")
    files.write(neighbor, b"other")
    place = files.join(folder, name)
    for path in ("x", "y.parquet", "in/x"):
        files.write(files.join(place, path), b"own")
    assert files.list_folder(place, suffix=".parquet") == {f"{place}/y.parquet": 3}
    assert files.list_folder(place, prefix="x") == {f"{place}/x": 3}
    assert files.folders(place) == {"in"}
    files.delete(place, ["x"])
    assert files.list_below(place).keys() == {"y.parquet", "in/x"}
    files.delete_folder(folder, name)
    assert files.list_below(folder).keys() == {"a1/x"}
    files.write(files.join(place, "x"), b"own")
    assert files.find(f"{glob.escape(place)}/*") == (f"{place}/x",)


def test_missing_objects_are_reported_as_missing_files_and_shards(folder):
    with pytest.raises(FileNotFoundError):
        files.read(files.join(folder, "none"))
    lot = Shard(ImageTextSource("web", ""), files.join(folder, "none.tar"))
    (pair,) = read_pairs(lot, limits=None)
    assert "shard cannot be opened" in pair.error


def test_a_second_run_is_refused_until_the_first_is_dead(folder, monkeypatch):
    monkeypatch.setattr(run_lock, "_SETTLE_S", 0.1)
    path = files.join(folder, run_lock.NAME)
    with run_lock.acquire(folder, "score"):
        assert files.is_file(path)
        with pytest.raises(run_lock.LockedError, match="score"):
            run_lock.acquire(folder, "select")
    assert not files.is_file(path)
    long_ago_s = time.time() - 1000
    first = run_lock.acquire(folder, "score", clock=lambda: long_ago_s)
    with first, run_lock.acquire(folder, "select"):
        pass


def test_an_upload_of_a_killed_writer_is_ended(store, folder):
    if store.server.scheme == "az":
        pytest.skip("Azure forgets the blocks of such uploads by itself")
    key = f"{folder.rpartition('/')[2]}/left"
    url = f"{store.server.url}/bucket/{key}"
    send(store.server.environment, "POST", url, {"uploads": ""})
    assert object_servers.open_uploads(store.server) == [key]
    assert run_lock.remove_leftovers(folder) == 1
    assert object_servers.open_uploads(store.server) == []


def test_a_rebuilt_index_is_copied_again(folder):
    path = files.join(folder, "set.faiss")
    contents = [b"one", b"two"]
    copies = []
    for content in contents:
        files.write(path, content)
        copies.append(Path(files.local_copy(path)))
        assert files.local_copy(path) == str(copies[-1])
    assert [copy.read_bytes() for copy in copies] == contents
    for copy in copies:
        copy.unlink()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A crawl and a run on it."""
    folder = tmp_path_factory.mktemp("disk")
    crawl.clear(folder)
    crawl.write(crawl.Web(250, 1, n_evaluation=64, n_seeds=64), folder)
    curate(str(folder), str(folder / "run"))
    return folder


def test_a_run_in_an_object_store_writes_the_same_bytes_as_on_a_disk(
    store, disk, capsys
):
    """Its tables have other names, which hash the paths of shards; its records not."""
    files.use_options(PipelineOptions(list(store.flags)))  # `disk` has used others
    web, output = f"{store.bucket}/web", f"{store.bucket}/run"
    for path in disk.rglob("*.tar"):
        files.write(files.join(web, str(path.relative_to(disk))), path.read_bytes())
    curate(web, output, *store.flags)
    found, expected = records_of(output), records_of(str(disk / "run"))
    assert found == expected
    assert len(found) == 2
    assert not files.find(files.join(output, "**.tmp"))
    assert not files.is_file(files.join(output, run_lock.NAME))
    capsys.readouterr()
    curate(web, output, *store.flags)
    assert capsys.readouterr().out.count("nothing to do") == 4


def records_of(run_folder: str) -> dict[str, str]:
    """Name to checksum of the training shards and their indexes."""
    paths = files.find(files.join(run_folder, "tfrecords", "*"))
    return {
        path.rsplit("/", 1)[-1]: hashlib.sha256(files.read(path)).hexdigest()
        for path in paths
        if path.endswith((".tfrecord", ".tfrecord.index"))
    }


def curate(web: str, output: str, *flags: str) -> None:
    run.main(
        [
            *("curate", "--config", "curation_configs/demo.py", "--output", output),
            *("--input", f"{web}/crawl/*.tar"),
            *("--eval", f"scenes={web}/evaluation/*.tar"),
            *("--seeds", f"scenes={web}/seeds/*.tar"),
            *flags,
        ]
    )
