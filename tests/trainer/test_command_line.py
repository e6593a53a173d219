"""Flags are read before JAX is imported; what they name is what the code has."""

import subprocess
import sys

import pytest

from trainer import command_line
from trainer.evals.sets import public_sets
from trainer.evals.tasks import TASKS
from trainer.evaluation_config import Weights
from trainer.exchange.formats import Format
from trainer.exchange.hugging_face_config import GELUS

# Runs a command as `python -m` does, and prints what its flags needed.
PROGRAM = """
import runpy, sys
sys.argv = ["", *sys.argv[2:]] if len(sys.argv) > 2 else [""]
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
except SystemExit as end:
    heavy = {{"jax", "flax", "tensorflow", "grain", "orbax"}} & set(sys.modules)
    print("exit code", end.code, sorted(heavy))
"""


@pytest.mark.parametrize("command", ["train", "evaluate", "export", "pictures"])
@pytest.mark.parametrize(("flag", "code"), [("--help", 0), ("--no-such-flag", 2)])
def test_help_and_wrong_flags_do_without_jax(command, flag, code):
    program = PROGRAM.format(module=f"trainer.{command}")
    done = subprocess.run(
        [sys.executable, "-c", program, "", flag],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == f"exit code {code} []"


@pytest.mark.parametrize(
    "parser", [command_line.train_parser, command_line.evaluate_parser]
)
def test_a_folder_of_an_object_store_is_refused(parser, capsys):
    flags = {"--config": "a.py", "--data": "b", "--workdir": "gs://bucket/run"}
    if parser is command_line.evaluate_parser:
        flags = {"--checkpoint": "gs://bucket/run", "--task": "c", "--data": "b"}
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args([part for flag in flags.items() for part in flag])
    message = "gs://bucket/run: expected a path on disks, which all processes share"
    assert message in capsys.readouterr().err


def test_the_words_of_the_flags_are_those_of_the_code():
    assert set(command_line.TASKS) == set(TASKS)
    assert set(command_line.PUBLIC_SETS) == set(public_sets.RECIPES)
    assert set(command_line.FORMATS) == set(Format)
    assert set(command_line.GELUS) == set(GELUS)
    assert set(command_line.WEIGHTS) == set(Weights)
