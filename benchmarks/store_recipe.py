"""Counts what the demo's recipe asks of a store, and the time of processors it costs.

    python -m benchmarks.store_recipe requests    # by stage, on the tests' S3
    python -m benchmarks.store_recipe time        # local disk and servers, side by side

The web has 250 pairs in 10 shards. Servers are processes of their own. `time` is user
and system time of the command alone, of one whole run and of the median of three with
nothing left to do; it needs `make .engines/installed`.
"""

import argparse
import collections
import contextlib
import io
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.commands.arguments import STAGES
from pipeline.storage import files, object_clients
from tests.support import object_servers, store_process

_Place = tuple[str, Mapping[str, str]]  # a root, and the variables that lead there

N_PAIRS, N_SHARDS = 250, 10
N_AGAIN = 3
# US dollars per request of S3 Standard in us-east-1; deleting is free.
PRICES = collections.defaultdict(
    lambda: 0.005 / 1000,
    {"get": 0.0004 / 1000, "head": 0.0004 / 1000, "delete": 0.0, "delete_many": 0.0}
    | {"head_bucket": 0.0004 / 1000},
)


def draw_web(folder: Path) -> None:
    """A web whose crawl lies in `N_SHARDS` shards."""
    _run(["pipeline.scenes", "--output", str(folder), "--n-pairs", str(N_PAIRS)])
    (whole,) = (folder / "crawl").iterdir()
    key_to_members = collections.defaultdict(list)
    with tarfile.open(whole) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            key = member.name.partition(".")[0]
            key_to_members[key].append((member, file.read()))
    whole.unlink()
    keys, per_shard = list(key_to_members), -(-N_PAIRS // N_SHARDS)
    for number in range(N_SHARDS):
        path = folder / "crawl" / f"crawl-{number:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key in keys[number * per_shard : (number + 1) * per_shard]:
                for member, data in key_to_members[key]:
                    tar.addfile(member, io.BytesIO(data))


def _run(words: Sequence[str]) -> float:
    """Runs `python -m ...`; returns the time of processors, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{words}: exit code {done.returncode}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _flags(root: str) -> list[str]:
    return [
        *("--config", "curation_configs/demo.py", "--output", f"{root}/run"),
        *("--input", f"{root}/web/crawl/*.tar"),
        *("--eval", f"scenes={root}/web/evaluation/*.tar"),
        *("--seeds", f"scenes={root}/web/seeds/*.tar"),
    ]


def _upload(web: Path, root: str) -> None:
    object_clients.forget_clients()
    for path in web.rglob("*.tar"):
        files.write(f"{root}/web/{path.relative_to(web)}", path.read_bytes())


def print_requests(web: Path, scratch: Path) -> None:
    """A table of requests by stage, with those a shard and a pair and their price."""
    with store_process.start_process(["bucket"]) as server:
        os.environ.update(server.environment("s3"))
        root = "s3://bucket"
        _upload(web, root)
        seen: collections.Counter[str] = collections.Counter(server.counts())
        for stage, words in _commands(root, scratch).items():
            _run(words)
            counts = collections.Counter(server.counts())
            _print_stage(stage, counts - seen)
            seen = counts


def _commands(root: str, scratch: Path) -> dict[str, list[str]]:
    flags = _flags(root)
    stages = {name: ["pipeline.run", name, *flags] for name in (*STAGES, "report")}
    again = {f"{name} again": stages[name] for name in STAGES}
    model, shards = scratch / "tokenizer.model", f"{root}/run/tfrecords"
    data = ["--data", shards]
    vocabulary = ["--vocabulary-size", "200", "--output", str(model)]
    training = ["--config", "trainer/configs/demo.py", "--workdir", f"{scratch}/model"]
    changed = (f"data.tokenizer={model}", "n_steps=4", "optimizer.n_warmup_steps=1")
    settings = [word for one in changed for word in ("--set", one)]
    return stages | {
        "curate again": ["pipeline.run", "curate", *flags],
        **again,
        "tokenizer": ["trainer.tokenizer", *data, *vocabulary],
        "train, 4 steps": ["trainer.train", *data, *training, *settings],
    }


def _print_stage(stage: str, counts: Mapping[str, int]) -> None:
    reads = counts.get("get", 0)
    heads = counts.get("head", 0) + counts.get("head_bucket", 0)
    lists = counts.get("list", 0) + counts.get("list_uploads", 0)
    n = sum(counts.values())
    writes = n - reads - heads - lists
    dollars = sum(PRICES[name] * number for name, number in counts.items())
    print(
        f"| {stage} | {reads} | {heads} | {lists} | {writes} | {n / N_SHARDS:.1f} |"
        f" {n / N_PAIRS:.2f} | {1e6 * dollars / N_SHARDS:.0f} |",
        flush=True,
    )


@contextlib.contextmanager
def _start_real(scheme: str) -> Iterator[_Place]:
    start = {
        "s3": object_servers.start_s3,
        "gs": object_servers.start_gcs,
        "az": object_servers.start_azure,
    }
    with start[scheme]() as server:
        yield server.bucket, server.environment


def print_times(web: Path, scratch: Path) -> None:
    """Seconds of processors of a run and of nothing to do, by place."""
    places: dict[str, contextlib.AbstractContextManager[_Place]] = {
        "local disk": contextlib.nullcontext((str(scratch), {})),
        "S3, versitygw": _start_real("s3"),
        "Cloud Storage, gcs-server of the tests": _start_real("gs"),
        "Azure, Azurite": _start_real("az"),
    }
    for name, started in places.items():
        with started as (root, environment):
            os.environ.update(environment)
            if files.is_remote(root):
                _upload(web, root)
            words = ["pipeline.run", "curate", *_flags(root)]
            whole_s = _run(words)
            again_s = [_run(words) for _ in range(N_AGAIN)]
            median_s = statistics.median(again_s)
            print(f"| {name} | {whole_s:.1f} | {median_s:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("requests", "time"))
    what = parser.parse_args().what
    with tempfile.TemporaryDirectory(prefix="recipe-") as name:
        scratch = Path(name)
        draw_web(scratch / "web")
        if what == "requests":
            print_requests(scratch / "web", scratch)
        else:
            print_times(scratch / "web", scratch)


if __name__ == "__main__":
    main()
