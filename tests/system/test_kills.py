"""SIGKILL at any moment of any command: the bytes of a run that was never killed.

The commands are those of a user, each a process group of its own. One kill in two comes
before a change of a file that is drawn, the others at a moment that is drawn. KILLS is
how many there are over all stages; `pytest -s` shows where they came.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.demo_web import crawl
from pipeline.records import KEPT
from pipeline.storage.tables import SUMMARY_SUFFIX
from tests.pipeline.engine.test_stage_runner import split
from tests.support.killed_commands import Commands, Ended
from tests.support.tiny_run import bytes_of

N_KILLS = int(os.environ.get("KILLS", "14"))
N_PAIRS, N_SHARDS = 250, 10  # five lots

RECIPE = """
import dataclasses
from curation_configs import demo

def get_config():
    config = demo.get_config()
    return dataclasses.replace(
        config,
        encoder=dataclasses.replace(config.encoder, batch_size=16),
        granularities=tuple(
            dataclasses.replace(one, batch_size=8) for one in config.granularities[:2]
        ),
        export=dataclasses.replace(config.export, samples_per_shard=8),
        shards_per_lot=2,
    )
"""

# Step to its command, and to its share of the kills.
STEPS = {
    "score": ("score", 0.2),
    "select": ("select", 0.16),
    "caption": ("caption", 0.16),
    "flag": ("caption", 0.12),
    "export": ("export", 0.12),
    "swap": ("export --set export.samples_per_shard=5", 0.12),
    "take down": ("remove --pairs PAIRS", 0.12),
}


@dataclasses.dataclass(frozen=True)
class Quiet:
    """A step that nothing disturbed: the run before it and after it."""

    before: Path
    after: Path
    words: tuple[str, ...]
    begun_s: float  # until the first change of a file
    wall_s: float
    n_changes: int


def words_of(web: Path, command: str) -> tuple[str, ...]:
    name, *more = command.replace("PAIRS", str(web / "pairs.txt")).split()
    return (
        *(name, "--config", str(web / "recipe.py"), "--output", str(web / "run")),
        *("--input", f"{web}/split/*.tar"),
        *("--eval", f"scenes={web}/evaluation/*.tar"),
        *("--seeds", f"scenes={web}/seeds/*.tar", *more),
    )


def write_web(web: Path) -> None:
    crawl.clear(web)
    crawl.write(crawl.Web(N_PAIRS, 1, n_evaluation=64, n_seeds=64), web)
    (shard,) = (web / "crawl").glob("*.tar")
    split(shard, web / "split", N_SHARDS)
    (web / "recipe.py").write_text(RECIPE)


def kept_ids(output: Path) -> list[str]:
    """A kept pair of each lot that has one."""
    found = []
    for path in sorted(output.glob("decisions/*/*.parquet")):
        table = pq.read_table(path, columns=["sample_id", "outcome"]).to_pylist()
        found += [r["sample_id"].hex() for r in table if r["outcome"] == KEPT][:1]
    return found


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Quiet]:
    """All steps, one after the other, undisturbed."""
    web = tmp_path_factory.mktemp("web")
    write_web(web)
    commands, steps = Commands(web / "run"), {}
    (web / "run").mkdir()
    for step, (command, _) in STEPS.items():
        if step == "flag":
            shutil.rmtree(web / "run" / "flags")
        if step == "take down":  # one was before: the record has its key by then
            first, *others = kept_ids(web / "run")
            take_down(web, first)
            assert commands.run(words_of(web, command)).code == 0
            take_down(web, *others[:2])
        before = shutil.copytree(web / "run", web / f"before {step}")
        words, start_s = words_of(web, command), time.time()
        ended = commands.run(words)
        assert ended.code == 0, ended.errors
        times_s = ended.changes[0].time_s - start_s, time.time() - start_s
        after = shutil.copytree(web / "run", web / f"after {step}")
        steps[step] = Quiet(before, after, words, *times_s, len(ended.changes))
    return steps


def take_down(web: Path, *sample_ids: str) -> None:
    lines = [f"sample_id:{sample_id}\n" for sample_id in sample_ids]
    (web / "pairs.txt").write_text("".join(lines))


def sums_of(output: Path) -> dict[str, str]:
    """SHA-256 of every file, but of progress.json, which holds times; of the record of
    removals without the day."""
    found = {n: d for n, d in bytes_of(output).items() if n != "progress.json"}
    if record := found.get("removed.json"):
        found["removed.json"] = re.sub(rb'"date": "[0-9-]+"', b"", record)
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


def finished(output: Path, end: Mapping[str, str]) -> set[str]:
    """Parts, and the tables and training shards that are as they are in the end."""
    now = sums_of(output)
    same = {name for name, sha256 in now.items() if end.get(name) == sha256}
    parts = {name for name in now if name.startswith("parts/")}
    return {name for name in same | parts if is_whole(name, same | parts)}


def is_whole(name: str, there: set[str]) -> bool:
    if not name.endswith(".parquet"):
        return name.endswith(".tfrecord")
    summary = f"{name.removesuffix('.parquet')}{SUMMARY_SUFFIX}"
    return name.startswith("parts/") or summary in there


def written(ended: Ended, output: Path) -> Iterator[str]:
    """Tables, parts and training shards that a command has written."""
    for change in ended.changes:
        name = str(Path(change.path).relative_to(output))
        is_table = name.endswith(".parquet") and name != "lots/plan.parquet"
        if change.is_write and (is_table or name.endswith(".tfrecord")):
            yield name


def expect_whole_set(output: Path) -> None:
    """What the manifest names is there, with the bytes that it says."""
    path = output / "tfrecords" / "manifest.json"
    shards = json.loads(path.read_text())["shards"] if path.exists() else []
    for shard in shards:
        data = (path.parent / shard["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        assert (path.parent / f"{shard['name']}.index").exists()


@dataclasses.dataclass
class Attempts:
    """Attempts at one step, of which most are killed."""

    quiet: Quiet
    output: Path
    rng: np.random.Generator
    end: Mapping[str, str]
    aims: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    n_made: int = 0  # changes since the step began
    n_began: int = 0  # kills after a first change

    def begin(self) -> None:
        """Puts the run back to where the step begins."""
        shutil.rmtree(self.output, ignore_errors=True)
        shutil.copytree(self.quiet.before, self.output)
        self.n_made = 0

    def attempt(self, *, is_aimed: bool, with_kill: bool = True) -> Ended:
        """Runs the command, which leaves alone what is finished."""
        n_left = max(2, self.quiet.n_changes - self.n_made)
        kill: dict = {}
        if with_kill and is_aimed:
            kill = {"kill_before": int(self.rng.integers(1, n_left))}
        elif with_kill:
            bounds_s = 0.9 * self.quiet.begun_s, self.quiet.wall_s
            kill = {"kill_after_s": self.rng.uniform(*bounds_s)}
        is_left = (self.output / "lock.json").exists()
        before = finished(self.output, self.end)
        ended = Commands(self.output).run(self.quiet.words, **kill)
        assert ended.is_killed or ended.code == 0, ended.errors
        if is_left and not ended.is_killed:
            assert "takes over the lock of pid" in ended.errors
        counts = collections.Counter(written(ended, self.output))
        assert counts.keys() & before == set()
        assert {name for name, n in counts.items() if n > 1} == set()
        expect_whole_set(self.output)
        self._count(ended)
        return ended

    def _count(self, ended: Ended) -> None:
        self.n_made += len(ended.changes)
        if ended.is_killed:
            self.n_began += bool(ended.changes)
            aim = ended.killed_before or ("at work" if ended.changes else "before")
            place = aim.removeprefix(f"{self.output}/").split("/")[0]
            self.aims[place] += 1


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_kills_change_no_byte_repeat_nothing_and_lose_nothing(quiet, step):
    one = quiet[step]
    rng = np.random.default_rng(list(STEPS).index(step))
    output = one.before.parent / "run"
    attempts = Attempts(one, output, rng, sums_of(one.after))
    n_kills = round(N_KILLS * STEPS[step][1])
    attempts.begin()
    for number in itertools.count():
        if attempts.aims.total() >= n_kills:
            break
        if not attempts.attempt(is_aimed=number % 2 == 0).is_killed:
            assert sums_of(output) == attempts.end
            attempts.begin()
    attempts.attempt(is_aimed=False, with_kill=False)
    found = f"{step}: {attempts.aims.total()} kills, {attempts.n_began} after a change,"
    print(found, f"before or in {dict(attempts.aims)}; {one.n_changes} changes in all")
    assert sums_of(output) == attempts.end
