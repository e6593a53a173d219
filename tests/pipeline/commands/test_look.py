"""`status`, `show` and `find`: instant, and of nothing but a run folder."""

import json
import os
import re
import stat
import subprocess
import sys

import pytest

from pipeline import run as command_line
from pipeline.commands import run_record
from tests.pipeline.report.test_report_commands import CHECKPOINT, RECIPE
from tests.support.report_runs import ScoredRow, make_run

HEAVY = ("apache_beam", "jax", "flax", "tensorflow", "transformers", "torch", "faiss")

PROGRAM = """
import json, sys
from pipeline import run
try:
    run.main(sys.argv[1:])
finally:
    print(json.dumps([name for name in {heavy} if name in sys.modules]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run over drawn pairs that is scored, decided on and recorded."""
    root = tmp_path_factory.mktemp("looking")
    path = root / "recipe.py"
    path.write_text(f"ROOT = {str(root)!r}\nCHECKPOINT = {CHECKPOINT!r}\n{RECIPE}")
    rows = [ScoredRow(), ScoredRow("a gray wall")]
    make_run(root, [rows], keep_all=True, checkpoint=CHECKPOINT)
    run = command_line.open_run(["status", *flags(root)])
    run_record.write(run, run.root)
    return root


def flags(root) -> list[str]:
    return ["--config", f"{root}/recipe.py", "--output", f"{root}/run"]


def lines_of(capsys, *arguments: str) -> list[str]:
    command_line.main(arguments)
    return capsys.readouterr().out.splitlines()


def error_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        command_line.main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def loaded(*words: str) -> tuple[list[str], str]:
    """Heavy packages in memory after a command in a fresh interpreter; its output."""
    program = PROGRAM.format(heavy=HEAVY)
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    *lines, last = done.stdout.splitlines()
    return json.loads(last), "\n".join([*lines, done.stderr])


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["curate", "--help"],
        ["status", "--help"],
        ["status", "--output", "RUN"],
        ["find", "--text", "gray", "--output", "RUN"],
        ["status", "--output", "nowhere"],
    ],
)
def test_looking_loads_no_model_and_no_beam(folder, words):
    words = [f"{folder}/run" if word == "RUN" else word for word in words]
    heavy, output = loaded(*words)
    assert heavy == [], output


def test_showing_a_pair_loads_the_search_of_sets_alone(folder, capsys):
    (line, *_) = lines_of(capsys, "find", "--output", f"{folder}/run")
    heavy, output = loaded("show", line.split()[0], "--output", f"{folder}/run")
    assert heavy == ["faiss"], output


@pytest.mark.parametrize("command", ["status", "find"])
def test_a_run_folder_is_enough(folder, capsys, command):
    short = lines_of(capsys, command, "--output", f"{folder}/run")
    assert short == lines_of(capsys, command, *flags(folder))


def test_flags_come_in_any_order(folder, capsys):
    expected = lines_of(capsys, "status", *flags(folder))
    assert lines_of(capsys, *flags(folder), "status") == expected


def test_status_says_what_flags_would_change(folder, capsys):
    setting = ["--set", "selection.alignment.min_score=0.9"]
    *_, title, field, tables = lines_of(
        capsys, "status", "--output", f"{folder}/run", *setting
    )
    assert title == "against the run that is there:"
    assert field == "  selection.alignment.min_score: 0.2 -> 0.9"
    changed = "training shards whose pairs or captions change"
    assert tables == f"  would be made: decisions, {changed}"


def test_status_says_which_scores_flags_would_need(folder, capsys):
    setting = ["--set", "language_detector=langdetect"]
    *_, tables = lines_of(capsys, "status", "--output", f"{folder}/run", *setting)
    assert tables.startswith("  would be made: languages of 1 shards, decisions, ")


def test_a_recipe_with_a_rule_of_its_own_needs_no_more_than_its_file(folder, capsys):
    path, rule = folder / "run/config.json", "pipeline.selection.rules"
    whole, recipe = path.read_text(), (folder / "recipe.py").read_text()
    path.write_text(whole.replace(f'"FewWords": "{rule}"', '"FewWords": "<run_path>"'))
    without_sets = re.sub(r"(sources|evaluation_sets|seed_sets)=\(.+\),", "", recipe)
    (folder / "own.py").write_text(without_sets)
    words = ["--config", f"{folder}/own.py", "--output", f"{folder}/run"]
    try:
        assert lines_of(capsys, "status", *words) == lines_of(
            capsys, "status", *flags(folder)
        )
    finally:
        path.write_text(whole)


def test_a_run_folder_that_is_read_only_can_be_looked_at(folder, capsys):
    root = folder / "run"
    expected = lines_of(capsys, "status", "--output", str(root))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    mode = root.stat().st_mode
    os.chmod(root, stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert lines_of(capsys, "status", "--output", str(root)) == expected
    finally:
        os.chmod(root, mode)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--runner", "DirectRunner"], "--runner: expected a flag of status --help"),
        (["--image", "x.jpg"], "--image: expected show, not status"),
        (["--set", "selektion.x=1"], "no field 'selektion' (nearest: selection)"),
        (["--output", "x"], "--output x: expected the flag once"),
    ],
)
def test_a_flag_of_another_command_is_refused(folder, capsys, words, expected):
    base = ["status", "--output", f"{folder}/run"]
    assert expected in error_of(capsys, *base, *words)


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    error = error_of(capsys, "status", "--output", str(tmp_path))
    assert error == (
        f"error: --output {tmp_path}: expected a run folder with config.json, or"
        " --config FILE.py"
    )
    (tmp_path / "file").write_text("")
    error = error_of(capsys, "status", "--output", f"{tmp_path}/file")
    assert "expected a folder" in error


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text[:100], "config.json is damaged: expected an object"),
        (lambda text: "[" * 100_000, "config.json is damaged: expected an object"),
        (lambda text: '{"format_version": 1}', "found 1: its images were read as"),
        (lambda text: '{"format_version": 3}', "no 'config'"),
        (lambda text: '{"format_version": 2, "config": 3}', "expected"),
        (
            lambda text: text.replace('"min_words": 2', '"min_words": "two"'),
            "expected int",
        ),
        (
            lambda text: text.replace('"min_words": 2', '"min_wrods": 2'),
            "no field 'selection.drop_rules[1].min_wrods' (nearest: min_words)",
        ),
        (
            lambda text: text.replace("pipeline.selection.rules", "no_such_module"),
            "BoilerplateAltText is in no_such_module, not found",
        ),
        (
            lambda text: text.replace(
                '"FewWords": "pipeline.selection.rules"', '"FewWords": "<run_path>"'
            ),
            "FewWords is a class of the recipe's own file",
        ),
        (
            lambda text: text.replace("FewWords", "Shouting"),
            "expected 'class': a known one",
        ),
    ],
)
def test_a_record_that_cannot_be_read_is_one_line(folder, capsys, change, expected):
    path = folder / "run/config.json"
    whole = path.read_text()
    path.write_text(change(whole))
    try:
        error = error_of(capsys, "status", "--output", f"{folder}/run")
    finally:
        path.write_text(whole)
    assert error.startswith(f"error: --output {folder}/run: ")
    assert expected in error
    assert len(error) < 600


def test_a_record_of_an_older_version_is_read(folder, capsys):
    path = folder / "run/config.json"
    whole = path.read_text()
    expected = lines_of(capsys, "status", "--output", f"{folder}/run")
    content = json.loads(whole)
    del content["classes"], content["checkpoints"]
    path.write_text(json.dumps(content))
    try:
        assert lines_of(capsys, "status", "--output", f"{folder}/run") == expected
    finally:
        path.write_text(whole)
