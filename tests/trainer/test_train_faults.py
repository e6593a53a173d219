"""A training whose requests for shards fail now and then learns the same."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping

import pytest

from pipeline.storage import files, object_clients
from tests.support import object_servers
from tests.support.fault_proxy import FaultProxy
from tests.support.object_servers import Server
from tests.support.runs import metric_lines, with_set
from trainer import train

pytestmark = pytest.mark.cloud

N_STEPS = 200
SHARE = 0.25
SETTINGS = (
    f"n_steps={N_STEPS}",
    f"run.n_steps_per_checkpoint={N_STEPS}",
    "run.n_steps_per_log=1",  # with the loss of every batch
    "data.n_records_per_block=1",  # so that many requests can fail
    "data.n_blocks_per_window=4",
)


@contextlib.contextmanager
def led_by(environment: Mapping[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        object_clients.forget_clients()
        yield
    object_clients.forget_clients()


def run(
    recipe: pathlib.Path, workdir: pathlib.Path, environment: Mapping[str, str]
) -> list[dict]:
    flags = ["--config", recipe, "--data", "s3://bucket/run", "--workdir", workdir]
    with led_by(environment):
        train.main([*map(str, flags), *with_set(*SETTINGS)])
    return metric_lines(workdir)


def upload(server: Server, folder: pathlib.Path) -> None:
    with led_by(server.environment):
        for path in folder.iterdir():
            files.publish(str(path), f"s3://bucket/run/{path.name}")


def test_faults_change_no_batch_of_a_training(recipe, export, tmp_path):
    with object_servers.start_s3() as server:
        upload(server, export)
        expected = run(recipe, tmp_path / "quiet", server.environment)
        with FaultProxy(server, share=SHARE, seed=2) as proxy:
            found = run(recipe, tmp_path / "faults", proxy.environment)
        print(dict(proxy.faults), len(proxy.requests))  # with `pytest -s`
    assert sum(proxy.faults.values()) > 100
    assert found == expected
    assert found[-1]["step"] == N_STEPS
