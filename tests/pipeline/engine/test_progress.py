"""How far a stage is: figures on the screen and in RUN/progress.json."""

import json
import socket
import subprocess
import time

import pyarrow as pa
import pytest

from pipeline.engine import progress, run_lock
from pipeline.engine.progress import Rows, Watch, Work, watch
from pipeline.storage.tables import LotTables


@pytest.fixture
def tables(tmp_path) -> LotTables:
    return LotTables(str(tmp_path / "scores"))


def write(tables: LotTables, name: str, *errors: str) -> None:
    facts = {"unreadable": len(list(filter(None, errors)))}
    tables.write(name, pa.table({"error": list(errors)}), facts)


def work_on(tables: LotTables, n_total: int) -> Work:
    rows = Rows({tables.folder}, "unreadable")
    return Work(n_total, lambda: len(tables.lot_names()), rows)


def current(root) -> dict:
    return json.loads((root / "progress.json").read_text())["current"]


def test_tables_rows_and_errors_are_counted_from_where_the_stage_began(
    tmp_path, tables
):
    write(tables, "before", "", "broken")
    watched = Watch(str(tmp_path), "score", work_on(tables, 4))
    watched.look()
    write(tables, "a", "", "", "")
    write(tables, "b", "", "broken")
    shown = watched.look()
    found = current(tmp_path)
    assert (found["n_done"], found["n_total"]) == (3, 4)
    assert (found["n_rows"], found["n_errors"]) == (5, 1)
    assert found["rows_per_s"] > 0
    assert found["left_s"] == pytest.approx(found["elapsed_s"] / 2, abs=0.06)
    assert shown.line.startswith("score: 3 of 4 after 0 s, 5 rows, ")
    assert shown.line.endswith("1 errors")


def test_tables_of_other_shards_count_up_to_the_total_only(tmp_path, tables):
    watched = Watch(str(tmp_path), "score", work_on(tables, 1))
    for name in "abc":
        write(tables, name, "")
    assert watched.look().n_done == 1


def test_the_end_says_done_or_failed(tmp_path, tables):
    with watch(str(tmp_path), "score", work_on(tables, 1)):
        write(tables, "a", "")
    assert current(tmp_path)["state"] == "done"
    with (
        pytest.raises(RuntimeError),
        watch(str(tmp_path), "score", work_on(tables, 1)),
    ):
        raise RuntimeError
    assert current(tmp_path)["state"] == "failed"


def test_what_a_stage_took_stays_until_it_has_work_again(tmp_path, tables):
    with watch(str(tmp_path), "score", work_on(tables, 1)) as watched:
        pass
    watched.record({"pairs": 7, "unreadable": 0}, 7)
    with watch(str(tmp_path), "select", work_on(tables, 1)):
        pass
    took = progress.read(str(tmp_path))["stages"]
    assert took["score"]["counters"] == {"pairs": 7}
    assert took["score"]["n_rows"] == 7
    assert list(took) == ["score"]


def test_another_program_is_told_in_one_line(tmp_path, tables):
    assert progress.describe(str(tmp_path), 0.0) == ""
    Watch(str(tmp_path), "score", work_on(tables, 2)).look()
    with run_lock.acquire(str(tmp_path), "curate"):
        line = progress.describe(str(tmp_path), time.time() + 5)
    assert line.startswith("running: score: 0 of 2 after 0 s (5 s ago)")


@pytest.mark.parametrize(
    ("host", "renewed_s", "expected"),
    [
        (socket.gethostname(), 100, "stopped: score: 0 of 2; the same command resumes"),
        ("elsewhere", 100, "running: score: 0 of 2 after "),
        ("elsewhere", -100, "stopped: score: 0 of 2; the same command resumes"),
    ],
)
def test_a_stage_of_a_run_that_is_gone_is_stopped(
    tmp_path, tables, host, renewed_s, expected
):
    Watch(str(tmp_path), "score", work_on(tables, 2)).look()
    ended = subprocess.Popen(["true"])
    ended.wait()
    holder = run_lock.Holder(host, ended.pid, "curate", 0.0, float(renewed_s))
    (tmp_path / run_lock.NAME).write_bytes(run_lock._to_json(holder))
    assert progress.describe(str(tmp_path), 101.0).startswith(expected)


def test_a_stage_that_is_done_stays_done_without_a_lock(tmp_path, tables):
    with watch(str(tmp_path), "score", work_on(tables, 1)):
        pass
    assert progress.describe(str(tmp_path), time.time()).startswith("done: score: ")
