"""Two processes that begin on one folder of a store at the same moment: one goes on."""

import json
import multiprocessing
import os
import socket
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier

import pytest

from pipeline.engine import run_lock
from pipeline.storage import files, object_clients
from tests.support import object_servers
from tests.support.fake_object_store import FakeObjectStore
from tests.support.fault_proxy import FaultProxy
from tests.support.faults import Fault

N_ROUNDS = 100
_NO_PID = 1 << 21  # larger than any of Linux
_CONDITIONS = ("if-match", "if-none-match", "x-goog-if-generation-match")


def race(folders: list[str], environment: dict, barrier: Barrier, told) -> None:
    """Tries to lock one folder after the other, each when the other process does."""
    os.environ.update(environment)
    run_lock._SETTLE_S = 0.2  # of a takeover
    won = []
    for folder in folders:
        barrier.wait(60)
        try:
            lock = run_lock.acquire(folder, "curate")
        except run_lock.LockedError:
            won.append(False)
            barrier.wait(60)
            continue
        with lock:
            won.append(True)
            barrier.wait(60)  # held until the other one has tried
    told.send(won)


def count_winners(bucket: str, environment: dict, names: list[str]) -> list[int]:
    """How many of two processes got the lock of each folder."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    folders = [f"{bucket}/{name}" for name in names]
    pipes, processes = [], []
    for _ in range(2):
        here, there = context.Pipe()
        arguments = (folders, environment, barrier, there)
        processes.append(context.Process(target=race, args=arguments, daemon=True))
        processes[-1].start()
        pipes.append(here)
    won = []
    for pipe in pipes:
        assert pipe.poll(300), "expected both to end"
        won.append(pipe.recv())
    for process in processes:
        process.join(10)
    return [sum(both) for both in zip(*won, strict=True)]


def leave_lock(server_url: str, names: list[str]) -> None:
    """The locks of a run of this host that is dead."""
    fields = {"host": socket.gethostname(), "pid": _NO_PID, "command": "score"}
    text = json.dumps(fields | {"started_s": 1.0, "renewed_s": 1.0}).encode()
    for name in names:
        files.write(f"{server_url}/{name}/{run_lock.NAME}", text)


@pytest.fixture(params=["s3", "gs"])
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


def names_of(kind: str, n_rounds: int = N_ROUNDS) -> list[str]:
    return [f"{kind}-{number:03d}" for number in range(n_rounds)]


@pytest.fixture
def lead(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Leads this process to a store."""

    def led(environment: dict) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        object_clients.forget_clients()

    yield led
    object_clients.forget_clients()


@pytest.mark.slow
@pytest.mark.parametrize("is_taken_over", [False, True])
def test_of_two_runs_on_a_store_in_memory_one_goes_on(scheme, lead, is_taken_over):
    names = names_of("run")
    with FakeObjectStore() as server:
        lead(server.environment(scheme))
        bucket = server.bucket_url(scheme)
        if is_taken_over:
            leave_lock(bucket, names)
        winners = count_winners(bucket, server.environment(scheme), names)
        assert winners == [1] * N_ROUNDS
        assert not server.objects


@pytest.mark.slow
def test_of_two_runs_on_a_store_that_minds_no_conditions_one_goes_on(scheme, lead):
    """They wait for two seconds each time, so there are fewer."""
    names = names_of("run", 8)
    with FakeObjectStore() as server:

        def forget_conditions(request):
            for name in _CONDITIONS:
                request.headers.pop(name, None)

        server.answers = forget_conditions
        lead(server.environment(scheme))
        leave_lock(server.bucket_url(scheme), names[4:])
        winners = count_winners(
            server.bucket_url(scheme), server.environment(scheme), names
        )
        assert winners == [1] * len(names)


def test_a_store_that_minds_no_conditions_keeps_a_lock(scheme, lead, monkeypatch):
    monkeypatch.setattr(run_lock, "_SETTLE_S", 0.01)
    with FakeObjectStore() as server:

        def forget_conditions(request):
            for name in _CONDITIONS:
                request.headers.pop(name, None)

        server.answers = forget_conditions
        lead(server.environment(scheme))
        folder = f"{server.bucket_url(scheme)}/run"
        refused = pytest.raises(run_lock.LockedError, match="'curate' of pid")
        with run_lock.acquire(folder, "curate"), refused:
            run_lock.acquire(folder, "score")
        assert not server.objects


START = {"s3": object_servers.start_s3, "az": object_servers.start_azure}


@pytest.mark.cloud
@pytest.mark.parametrize("kind", START)
@pytest.mark.parametrize("is_taken_over", [False, True])
def test_of_two_runs_on_a_server_one_goes_on(kind, lead, is_taken_over):
    names = names_of("run")
    with START[kind]() as server:
        lead(server.environment)
        if is_taken_over:
            leave_lock(server.bucket, names)
        winners = count_winners(server.bucket, server.environment, names)
        assert winners == [1] * N_ROUNDS
        assert object_servers.list_objects(server) == {}


@pytest.mark.cloud
@pytest.mark.parametrize("kind", START)
def test_of_two_runs_whose_answers_are_lost_one_goes_on(kind, lead):
    names = names_of("run")
    kinds = (Fault.LOST_ANSWER, Fault.RESET)
    with START[kind]() as server, FaultProxy(server, share=0.1, kinds=kinds) as proxy:
        lead(server.environment)
        leave_lock(server.bucket, names[::2])
        winners = count_winners(server.bucket, proxy.environment, names)
        print(dict(proxy.faults))  # `pytest -s` shows it
        assert winners == [1] * N_ROUNDS
        assert object_servers.list_objects(server) == {}
