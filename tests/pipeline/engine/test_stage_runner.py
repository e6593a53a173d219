"""A run folder is the same from every runner and in every order of work."""

import collections
import hashlib
import io
import itertools
import json
import os
import pathlib
import random
import shutil
import tarfile
from collections.abc import Sequence

import pyarrow.parquet as pq
import pytest

from pipeline import curate, run
from pipeline.demo_web import crawl
from pipeline.engine.stage_runner import Counters
from pipeline.storage import local_disks
from pipeline.storage.file_facts import FileFacts
from tests.support import job_service
from tests.support.tiny_run import outputs_of

N_PAIRS = 250  # the fewest with every planted kind
N_SHARDS = 10

# A lot's last batch is padded, and here a lot has few images. Ten shards are four lots.
SETTINGS = (
    "encoder.batch_size=32",
    *(f"granularities.{i}.batch_size=8" for i in range(3)),
    "shards_per_lot=3",
)

PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers")


@pytest.fixture(scope="module")
def web(tmp_path_factory) -> pathlib.Path:
    """A crawl as one shard, and the same pairs as ten."""
    folder = tmp_path_factory.mktemp("web")
    crawl.clear(folder)
    crawl.write(crawl.Web(N_PAIRS, 1, n_evaluation=64, n_seeds=64), folder)
    (shard,) = (folder / "crawl").glob("*.tar")
    split(shard, folder / "split", N_SHARDS)
    return folder


def split(shard: pathlib.Path, folder: pathlib.Path, n_shards: int) -> None:
    """Deals the pairs of a tar out to several."""
    folder.mkdir()
    with tarfile.open(shard) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    pairs = itertools.groupby(members, lambda item: item[0].name.split(".")[0])
    contents = [list(pair) for _, pair in pairs]
    for i in range(n_shards):
        with tarfile.open(folder / f"{i:05d}.tar", "w") as tar:
            for member, data in itertools.chain.from_iterable(contents[i::n_shards]):
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def in_memory(web, tmp_path_factory) -> dict[str, str]:
    return curated(web, tmp_path_factory.mktemp("memory"))


def curated(
    web: pathlib.Path, output: pathlib.Path, *flags: str, shards: str = "split"
) -> dict[str, str]:
    """Runs all stages; gives the checksum of every file that tells no time."""
    run.main(
        [
            *("curate", "--config", "curation_configs/demo.py"),
            *("--input", f"{web}/{shards}/*.tar", "--output", str(output)),
            *("--eval", f"scenes={web}/evaluation/*.tar"),
            *("--seeds", f"scenes={web}/seeds/*.tar"),
            *(f"--set={setting}" for setting in SETTINGS),
            *flags,
        ]
    )
    found = {
        name: hashlib.sha256(data).hexdigest()
        for name, data in outputs_of(output).items()
    }
    assert len([name for name in found if name.startswith("decisions/")]) > 1
    assert any(name.endswith(".tfrecord") for name in found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_processes_write_what_one_does(web, in_memory, tmp_path, n_workers):
    flags = (*PROCESSES, str(n_workers))
    assert curated(web, tmp_path, *flags) == in_memory


@pytest.mark.slow
def test_processes_of_a_job_service_write_what_one_does(web, in_memory, tmp_path):
    with job_service.running() as flags:
        flags = (*flags, *job_service.SUBPROCESSES)
        assert curated(web, tmp_path, *flags) == in_memory


@pytest.mark.cloud
def test_prism_writes_what_one_process_does(web, in_memory, tmp_path):
    (tmp_path / "logs").mkdir()
    with (
        job_service.environment_of_workers(),
        job_service.prism(tmp_path / "logs") as flags,
    ):
        assert curated(web, tmp_path / "run", *flags) == in_memory


@pytest.mark.flink
def test_flink_writes_what_one_process_does(web, in_memory, tmp_path):
    workers = ("--environment_type=LOOPBACK", "--flink_master=[local]")
    jar = f"--flink_job_server_jar={flink_job_server()}"
    flags = ("--runner=FlinkRunner", jar, *workers)
    assert curated(web, tmp_path, *flags) == in_memory


def flink_job_server() -> str:
    """The jar, or the test is skipped with what is missing."""
    if shutil.which("java") is None:
        pytest.skip("expected Java 11 or newer on the PATH")
    jar = os.environ.get("JOB_SERVER", "")
    if not os.path.isfile(jar):
        name = "beam-runners-flink-2.2-job-server-2.77.0.jar"
        pytest.skip(f"JOB_SERVER={jar!r}: expected the path of Beam's {name}")
    return jar


@pytest.mark.slow
@pytest.mark.parametrize("rng_seed", [0, 1])
def test_neither_the_order_of_listings_nor_of_work_changes_anything(
    web, in_memory, tmp_path, monkeypatch, rng_seed
):
    rng = random.Random(rng_seed)
    in_order, listed = curate.run_stage, local_disks.match

    def run_shuffled(run_folder, lots: Sequence, *rest) -> Counters:
        return in_order(run_folder, rng.sample(lots, len(lots)), *rest)

    def list_shuffled(*arguments) -> list[FileFacts]:
        found = listed(*arguments)
        return rng.sample(found, len(found))

    monkeypatch.setattr(curate, "run_stage", run_shuffled)
    monkeypatch.setattr(local_disks, "match", list_shuffled)
    assert curated(web, tmp_path) == in_memory


def decisions_of(output: pathlib.Path) -> collections.Counter[tuple]:
    """Decisions with their sample ids; a pair that comes twice has two."""
    tables = [pq.read_table(path) for path in output.glob("decisions/*/*.parquet")]
    rows = itertools.chain.from_iterable(table.to_pylist() for table in tables)
    return collections.Counter(repr(sorted(row.items())) for row in rows)


@pytest.mark.slow
def test_one_shard_and_its_ten_parts_get_the_same_decisions(web, tmp_path):
    one, ten = tmp_path / "one", tmp_path / "ten"
    for output, shards in ((one, "crawl"), (ten, "split")):
        flags = ("--set", "export.samples_per_shard=50")
        curated(web, output, *flags, shards=shards)
    assert decisions_of(one) == decisions_of(ten)
    assert decisions_of(one).total() == N_PAIRS
    ledgers = [json.loads((f / "ledger.json").read_text()) for f in (one, ten)]
    assert ledgers[0].pop("pool") != ledgers[1].pop("pool")
    assert ledgers[0] == ledgers[1]
