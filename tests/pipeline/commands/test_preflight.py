"""One list of checks: each runs once per command, in the order of the list."""

import pathlib
import sys

import pytest

from pipeline import run as command_line
from pipeline.commands import preflight
from tests.pipeline.commands.test_look import flags, folder

__all__ = ["folder"]

ROOT = pathlib.Path(__file__).parents[3]
# The checks of packages that the list calls, by the name of the file.
OWN = {
    "config/prompts.py": "levels",
    "report/checks.py": "check",
    "engine/checks.py": "check",
    "selection/checks.py": "check",
    "sources/checks.py": "check",
    "scoring/checks.py": "check",
    "captioning/checks.py": "check",
}


def calls_of(monkeypatch, *words: str) -> list[str]:
    """The checks of packages that a command calls, in their order."""
    called = []
    for file, name in OWN.items():
        module = sys.modules["pipeline." + file[:-3].replace("/", ".")]

        check = getattr(module, name)

        def counted(*args, file=file, check=check):
            called.append(file)
            return check(*args)

        if file != "config/prompts.py":  # the caption stage orders prompts with it, too
            monkeypatch.setattr(module, name, counted)
    command_line.main(words)
    return called


@pytest.mark.parametrize(
    ("command", "models"),
    [("curate", ["scoring/checks.py", "captioning/checks.py"]), ("report", [])],
)
def test_each_check_runs_once_in_the_order_of_the_list(
    folder, monkeypatch, command, models
):
    called = calls_of(monkeypatch, command, *flags(folder))
    always = ["report/checks.py", "engine/checks.py", "selection/checks.py"]
    assert called == [*always, *models, "sources/checks.py"]


def test_every_check_of_a_package_is_in_the_list():
    files = (ROOT / "pipeline").rglob("checks.py")
    names = {str(path.relative_to(ROOT / "pipeline")) for path in files}
    assert names <= OWN.keys()
    listed = [check.__name__ for check in preflight.CHECKS]
    # Besides them: --audit, a command's own; shards that are no longer listed; and the
    # table of removed pairs.
    assert len(listed) == len(set(listed)) == len(OWN) + 3
