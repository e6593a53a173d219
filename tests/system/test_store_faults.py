"""A run through a proxy that breaks a share of all requests writes the same bytes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.storage import files, object_clients
from tests.support import object_servers, small_run
from tests.support.fault_proxy import FaultProxy
from tests.support.object_servers import Server, list_objects, open_uploads

pytestmark = pytest.mark.cloud

SHARE = 0.25  # of all requests, so that a call is often broken twice
ROOT = Path(__file__).parents[2]
# They hold times.
_WITH_TIMES = re.compile(r"progress\.json|report/.*")


def curate(root: Path, environment: dict[str, str]) -> str:
    """Runs the command in a process of its own; gives what it prints."""
    arguments = list(small_run.arguments("curate", "s3://bucket", "s3://bucket/run"))
    arguments[arguments.index("bucket/recipe.py")] = str(root / "recipe.py")
    variables = {"JAX_COMPILATION_CACHE_DIR": str(root / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.run", *arguments],
        env=os.environ | environment | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def upload(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lead(server, monkeypatch)
    for path in root.rglob("*.tar"):
        name = path.relative_to(root).as_posix()
        files.write(f"s3://bucket/{name}", path.read_bytes())


def lead(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    object_clients.forget_clients()


def outputs_of(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Name in the run folder to bytes, as seen without the proxy."""
    lead(server, monkeypatch)
    found = files.list_below("s3://bucket/run")
    return {
        name: files.read(facts.path)
        for name, facts in found.items()
        if not _WITH_TIMES.fullmatch(name)
    }


def test_faults_of_all_kinds_change_no_byte(tmp_path, monkeypatch):
    small_run.write(tmp_path)
    with object_servers.start_s3() as quiet, object_servers.start_s3() as server:
        for one in (quiet, server):
            upload(one, tmp_path, monkeypatch)
        curate(tmp_path, quiet.environment)
        with FaultProxy(server, share=SHARE, seed=1) as proxy:
            curate(tmp_path, proxy.environment)
            n_first = sum(proxy.faults.values())
            said = curate(tmp_path, proxy.environment)
        print(dict(proxy.faults), n_first, len(proxy.requests))  # with `pytest -s`
        assert said.count("nothing to do") == len(small_run.STAGES)
        assert n_first > 50
        expected = outputs_of(quiet, monkeypatch)
        assert outputs_of(server, monkeypatch) == expected
        assert list_objects(server).keys() == list_objects(quiet).keys()
        assert open_uploads(server) == []
    object_clients.forget_clients()
