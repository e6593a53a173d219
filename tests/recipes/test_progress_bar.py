"""Progress on standard error: lines where it is no terminal."""

import time

import pytest

from recipes import progress_bar


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(progress_bar, "_LINE_S", 0.01)


def test_rows_pass_unchanged_and_are_counted(capsys):
    rows = progress_bar.count(iter("abc"), "letters")
    passed = []
    for row in rows:
        passed.append(row)
        while f"letters: {len(passed)} after 0 s\n" not in capsys.readouterr().err:
            pass
    assert passed == list("abc")


def test_a_total_is_shown_with_what_is_done(capsys):
    error = ""
    with progress_bar.watch("shards", 4, lambda: 3):
        while not error:
            error = capsys.readouterr().err
    assert error.startswith("shards: 3 of 4 after 0 s\n")


def test_looks_that_take_long_are_far_apart():
    looks = []

    def look():
        looks.append(time.monotonic())
        time.sleep(0.05)
        return progress_bar.Shown(1, 2, "")

    with progress_bar.display(look):
        time.sleep(0.5)
    assert len(looks) == 1
