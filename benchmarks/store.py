"""Measures how fast libraries read, list and write objects, beside obstore alone.

    python -m benchmarks.store

Servers: versitygw (from `make .engines/installed`), and for the listing the S3 of the
tests, which keeps its objects in memory; Cloud Storage with `--gcs fake-gcs-server`.
Each is a process of its own, and so is each measure of a library. Prints a table of
the time of the clock and of processors; libraries that are not installed are said. To
have them all, in a new environment:

    pip install obstore 'apache-beam[aws,gcp]' s3fs gcsfs smart_open pyarrow \
        google-cloud-storage pytest
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path

from benchmarks.store_libraries import NAME_TO_LIBRARY, ONLY_GCS, ONLY_S3, Library
from tests.support import object_servers
from tests.support.fake_object_store import FakeObjectStore
from tests.support.server_processes import ServerProcess, free_port

BUCKET = "bucket"
SMALL_BYTES, RANGE_BYTES, LARGE_BYTES = 1000, 64 << 10, 64_000_000
TAR_BYTES = 1_000_000_000
N_SMALL = 200  # objects
N_LISTED = 100_000
N_THREADS = 16
_LIMIT_S = 20.0  # of one measure: slow libraries make fewer calls
_GIVE_UP_S = 300
_LISTING = "list of 10^5"
_MEASURES = (
    *("stream of 1 GB", "read of 1 kB", "read of 1 kB, 16 threads"),
    *("range of 64 KiB, 16 threads", "write of 1 kB", "write of 64 MB"),
)


def small_key(number: int) -> str:
    return f"small/{number % N_SMALL:05d}"


@contextlib.contextmanager
def _start_gcs(program: str) -> Iterator[dict[str, str]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="gcs-") as name:
        (Path(name) / BUCKET).mkdir()
        options = ["-backend", "filesystem", "-filesystem-root", name, "-scheme"]
        options += ["http", "-host", "127.0.0.1", "-port", str(port)]
        options += ["-public-host", f"127.0.0.1:{port}", "-external-url", url]
        process = ServerProcess([program, *options], port, Path(name) / "log")
        process.start()
        try:
            yield {"STORAGE_EMULATOR_HOST": url}
        finally:
            process.stop()


@contextlib.contextmanager
def _start_listed() -> Iterator[dict[str, str]]:
    """The S3 of the tests with the objects to list, in a process of its own."""
    receiver, sender = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve_listed, args=(sender,), daemon=True)
    process.start()
    try:
        yield receiver.recv()
    finally:
        process.kill()


def _serve_listed(sender: multiprocessing.connection.Connection) -> None:
    with FakeObjectStore([BUCKET]) as server:
        for number in range(N_LISTED):
            server.objects[BUCKET, f"listed/{number:06d}"] = b"x"
        sender.send(server.environment("s3"))
        threading.Event().wait()


def _per_call(call: Callable[[int], object], n: int, n_threads: int = 1) -> dict:
    """Milliseconds a call, of the clock and of processors; fewer calls when slow."""
    call(0)  # connects
    numbers, n_done = itertools.count(1), []
    start_s, start_cpu_s = time.monotonic(), time.process_time()

    def work() -> None:
        own = 0
        while (number := next(numbers)) <= n:
            if time.monotonic() - start_s > _LIMIT_S:
                break
            call(number)
            own += 1
        n_done.append(own)

    with futures.ThreadPoolExecutor(n_threads) as executor:
        for outcome in [executor.submit(work) for _ in range(n_threads)]:
            outcome.result()
    wall_s, cpu_s = time.monotonic() - start_s, time.process_time() - start_cpu_s
    n_calls = sum(n_done)
    return {"ms": 1000 * wall_s / n_calls, "cpu_ms": 1000 * cpu_s / n_calls}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measure_stream(library: Library) -> dict:
    """The first measure of a process, whose peak of memory is then the stream's."""
    library.read(small_key(0))
    before_mib = _peak_mib()
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    n_bytes = sum(library.stream("web.tar"))
    wall_s, cpu_s = time.monotonic() - start_s, time.process_time() - start_cpu_s
    if n_bytes != TAR_BYTES:
        raise RuntimeError(f"n_bytes={n_bytes}: expected {TAR_BYTES}")
    rate = n_bytes / 1e6 / wall_s
    return {"mb_per_s": rate, "cpu_s": cpu_s, "mib": _peak_mib() - before_mib}


def _measures(library: Library) -> dict[str, Callable[[], dict]]:
    small, large = bytes(SMALL_BYTES), bytes(LARGE_BYTES)
    n_ranges = TAR_BYTES // RANGE_BYTES

    def read(number: int) -> object:
        return library.read(small_key(number))

    def read_range(number: int) -> object:
        start = number * 7919 % n_ranges * RANGE_BYTES
        return library.read_range("web.tar", start, RANGE_BYTES)

    def write(number: int) -> None:
        library.write(f"written/{number:05d}", small)

    def write_large(number: int) -> None:
        library.write(f"written/large-{number}", large)

    return {
        "stream of 1 GB": lambda: _measure_stream(library),
        "read of 1 kB": lambda: _per_call(read, 500),
        "read of 1 kB, 16 threads": lambda: _per_call(read, 1000, N_THREADS),
        "range of 64 KiB, 16 threads": lambda: _per_call(read_range, 1000, N_THREADS),
        "write of 1 kB": lambda: _per_call(write, 200),
        "write of 64 MB": lambda: _per_call(write_large, 3),
        _LISTING: lambda: _per_call(lambda number: library.list("listed"), 1),
    }


def _in_process(
    name: str, scheme: str, what: str, environment: Mapping[str, str]
) -> dict | str:
    """What a library does, or why there is nothing to say."""
    command = [sys.executable, "-m", "benchmarks.store", "--one", name, scheme, what]
    try:
        done = subprocess.run(
            command,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=_GIVE_UP_S,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {_GIVE_UP_S} s"
    if done.returncode:
        return done.stderr.strip().rpartition("\n")[2]
    return json.loads(done.stdout)


def _fill(scheme: str, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    library = NAME_TO_LIBRARY["ours"](scheme, BUCKET)
    for number in range(N_SMALL):
        library.write(small_key(number), os.urandom(SMALL_BYTES))
    library.write("web.tar", bytes(TAR_BYTES))


def _measure_all(
    server: str,
    scheme: str,
    environment: Mapping[str, str],
    names: Sequence[str],
    measures: Sequence[str],
) -> None:
    others = ONLY_GCS if scheme == "s3" else ONLY_S3
    for what in measures:
        for name in names:
            if name in others:
                continue
            found = _in_process(name, scheme, what, environment)
            if not isinstance(found, str):
                found = ", ".join(
                    f"{value:.3g} {unit}" for unit, value in found.items()
                )
            print(f"| {server} | {what} | {name} | {found} |", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gcs", help="the program fake-gcs-server")
    parser.add_argument("--libraries", nargs="+", default=[*NAME_TO_LIBRARY])
    parser.add_argument("--measures", nargs="+", help="words of them, such as stream")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    flags = _parser().parse_args()
    if flags.one:
        name, scheme, what = flags.one
        library = NAME_TO_LIBRARY[name](scheme, BUCKET)
        print(json.dumps(_measures(library)[what]()))
        return
    wanted = flags.measures or [""]
    measures = [what for what in _MEASURES if any(one in what for one in wanted)]
    print("| server | what | library | figures |\n| --- | --- | --- | --- |")
    with object_servers.start_s3() as server:
        _fill("s3", server.environment)
        environment = server.environment
        _measure_all("versitygw", "s3", environment, flags.libraries, measures)
    if any(one in _LISTING for one in wanted):
        with _start_listed() as environment:
            listing = [_LISTING]
            _measure_all("tests' S3", "s3", environment, flags.libraries, listing)
    if flags.gcs:
        with _start_gcs(flags.gcs) as environment:
            _fill("gs", environment)
            _measure_all(
                "fake-gcs-server", "gs", environment, flags.libraries, measures
            )


if __name__ == "__main__":
    main()
