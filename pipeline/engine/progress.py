"""Progress of the stages of a run, on the screen and in RUN/progress.json.

In: how many tables a stage makes, and where they appear. Out: figures for people, for
`status` in another terminal, for the report and for other programs.
"""

import collections
import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pipeline.engine import jobs, run_lock
from pipeline.records import VERSION
from pipeline.storage import files
from pipeline.storage.json_files import read_json
from pipeline.storage.tables import SUMMARY_SUFFIX
from recipes import interrupts, progress_bar

NAME = "progress.json"

_WINDOW = 30  # looks back that the current throughput is taken over


class Rows:
    """Counts the rows of tables that appear in some folders, and the errors in them.

    Their summaries say both, the errors under a name of their own. Tables that the
    first look finds were there before.
    """

    def __init__(self, folders: Iterable[str], error_key: str) -> None:
        self._folders = tuple(folders)
        self._error_key = error_key
        self._seen: set[str] | None = None
        self.n_rows = self.n_errors = 0

    def update(self) -> None:
        """Takes in the tables that are new."""
        paths = list(self._paths())
        if self._seen is None:
            self._seen = set(paths)
        new = [path for path in paths if path not in self._seen]
        for path, data in zip(new, files.read_many(new), strict=True):
            if isinstance(data, FileNotFoundError):  # removed meanwhile
                continue
            if isinstance(data, OSError):
                raise data
            summary = json.loads(data)
            self._seen.add(path)
            self.n_rows += summary["rows"]
            self.n_errors += summary.get(self._error_key, 0)

    def _paths(self) -> Iterator[str]:
        for folder in self._folders:
            yield from files.list_folder(folder, suffix=SUMMARY_SUFFIX)


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of a stage: `n_total` tables, of which `count_done()` are there.

    Tables of other source shards lie in the same folders and may be counted as well.
    """

    n_total: int
    count_done: Callable[[], int]
    rows: Rows | None = None  # None if nobody knows them before the end


@dataclasses.dataclass(frozen=True)
class Figures:
    """How far a stage is."""

    stage: str
    state: str  # running, done, failed or interrupted
    n_done: int  # tables
    n_total: int
    elapsed_s: float
    left_s: float | None  # if it goes on like this
    n_rows: int | None  # pairs, or captions, that were written since the stage began
    rows_per_s: float | None  # of late
    n_errors: int | None

    def line(self) -> str:
        """All of it in one line."""
        done = f"{self.n_done} of {self.n_total} after {self.elapsed_s:.0f} s"
        parts = [f"{self.stage}: {done}"]
        if self.n_rows:
            parts.append(f"{self.n_rows:,} rows, {self.rows_per_s or 0:,.1f}/s")
        if self.left_s is not None:
            parts.append(f"{self.left_s:.0f} s left")
        if self.n_errors:
            parts.append(f"{self.n_errors:,} errors")
        return ", ".join(parts)


def read(root: str) -> dict[str, Any]:
    """The contents of RUN/progress.json; {} if there is none.

    `current` are the `Figures` of the stage at work, or of the last one, with the Unix
    time of the last look; `stages` has for each stage what it took when it last had
    work to do; `version` is that of the program.
    """
    return read_json(files.join(root, NAME)) or {}


def describe(root: str, now_s: float) -> str:
    """One line on the stage at work, or on the last one; "" before there is any.

    A killed run leaves a stage "running"; without a live run it is called stopped, or
    left, if the lock names a job that may go on.
    """
    current = read(root).get("current")
    if current is None:
        return ""
    age_s = now_s - current.pop("updated_s")
    figures = Figures(**current)
    if figures.state == "running" and not run_lock.is_held(root, lambda: now_s):
        done = f"{figures.stage}: {figures.n_done} of {figures.n_total}"
        if run_lock.named_job(root):
            return f"left: {done}; {jobs.how_to_go_on(root)}"
        return f"stopped: {done}; the same command resumes"
    return f"{figures.state}: {figures.line()} ({max(0, age_s):.0f} s ago)"


def resume_hint(root: str) -> str:
    """The line of an interrupted command: where the same command goes on."""
    if job := run_lock.named_job(root):
        return f"{job} goes on: {jobs.how_to_go_on(root)}"
    current = read(root).get("current", {})
    if current.get("state") != "interrupted":
        return "the same command goes on with what is there"
    done = f"{current['n_done']} of {current['n_total']} done"
    return f"{current['stage']}, {done}; the same command goes on with the rest"


class Watch:
    """Looks at one stage again and again, one thread at a time."""

    def __init__(self, root: str, stage: str, work: Work) -> None:
        self._root, self._stage, self._work = root, stage, work
        self._start_s = time.monotonic()
        self._n_before: int | None = None
        self._looks: collections.deque[tuple[float, int]]
        self._looks = collections.deque([(0.0, 0)], maxlen=_WINDOW)

    def look(self, state: str = "running") -> progress_bar.Shown:
        """Counts what is there and writes RUN/progress.json."""
        figures = self._figures(state)
        current = dataclasses.asdict(figures) | {"updated_s": time.time()}
        self._write({"current": current})
        return progress_bar.Shown(figures.n_done, figures.n_total, figures.line())

    def record(self, counters: Mapping[str, int], n_rows: int) -> None:
        """Keeps what the stage took, at its end and if it had work to do."""
        done = {name: n for name, n in sorted(counters.items()) if n}
        took = {"elapsed_s": self._elapsed_s(), "n_rows": n_rows, "counters": done}
        stages = read(self._root).get("stages", {})
        self._write({"stages": stages | {self._stage: took}})

    def _figures(self, state: str) -> Figures:
        rows, elapsed_s, n_done = self._work.rows, self._elapsed_s(), self._n_done()
        if rows:
            rows.update()
        if self._n_before is None:
            self._n_before = n_done
        n_new, n_left = n_done - self._n_before, self._work.n_total - n_done
        is_known = state == "running" and n_new > 0
        return Figures(
            stage=self._stage,
            state=state,
            n_done=n_done,
            n_total=self._work.n_total,
            elapsed_s=elapsed_s,
            left_s=round(elapsed_s * n_left / n_new, 1) if is_known else None,
            n_rows=rows.n_rows if rows else None,
            rows_per_s=self._throughput(elapsed_s, rows.n_rows) if rows else None,
            n_errors=rows.n_errors if rows else None,
        )

    def _throughput(self, elapsed_s: float, n_rows: int) -> float:
        self._looks.append((elapsed_s, n_rows))
        (start_s, n_before), (end_s, n_after) = self._looks[0], self._looks[-1]
        passed_s = end_s - start_s
        return round((n_after - n_before) / passed_s, 1) if passed_s > 0 else 0.0

    def _n_done(self) -> int:
        return min(self._work.count_done(), self._work.n_total)

    def _elapsed_s(self) -> float:
        return round(time.monotonic() - self._start_s, 3)

    def _write(self, part: Mapping[str, Any]) -> None:
        path = files.join(self._root, NAME)
        content = {**read(self._root), **part, "version": VERSION}
        data = json.dumps(content, indent=1).encode() + b"\n"
        files.write(path, data)


@contextlib.contextmanager
def watch(root: str, stage: str, work: Work) -> Iterator[Watch]:
    """Shows how far a stage is until the block ends."""
    watched = Watch(root, stage, work)
    watched.look()  # for those who look on from the start
    state = "failed"
    try:
        with (
            interrupts.tidied(lambda: watched.look("interrupted")),
            progress_bar.display(watched.look),
        ):
            yield watched
        state = "done"
    finally:
        watched.look(state)
