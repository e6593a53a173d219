"""Who may import whom: the rules of the architecture, seen in a fresh interpreter."""

import functools
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PREFIXES = ("pipeline", "trainer", "apache_beam", "jax", "torch", "tensorflow")
STAGES = ("scoring", "selection", "captioning", "export")

# Imports a module and prints what it has brought along.
PROGRAM = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted(sys.modules)))
"""


def modules(package: str) -> list[str]:
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths]
    return [name for name in names if not name.endswith("__init__")]


@functools.cache
def brought_along(module: str) -> frozenset[str]:
    command = [sys.executable, "-c", PROGRAM, module]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    return frozenset(name for name in loaded if name.split(".")[0] in PREFIXES)


def packages(module: str) -> set[str]:
    return {name.split(".")[0] for name in brought_along(module)}


def test_the_records_import_nothing_of_the_project_and_no_framework():
    of_project = {n for n in brought_along("pipeline.records") if "." in n}
    assert of_project == {"pipeline.records"}


def test_the_trainer_imports_the_records_and_nothing_else_of_the_pipeline():
    loaded = {n for n in brought_along("trainer.train") if n.startswith("pipeline.")}
    assert loaded == {"pipeline.records"}
    assert "apache_beam" not in packages("trainer.train")


def test_the_pipeline_never_imports_the_trainer_or_torch():
    assert not {"trainer", "torch"} & packages("pipeline.run")


def test_the_models_do_without_beam():
    for module in modules("pipeline/models"):
        assert "apache_beam" not in packages(module), module


def test_the_demo_web_is_drawn_without_beam_and_jax():
    assert not {"apache_beam", "jax"} & packages("pipeline.scenes")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other_stage(stage):
    others = {f"pipeline.{other}" for other in STAGES if other != stage}
    assert not others & brought_along(f"pipeline.{stage}")


def test_only_the_command_line_imports_the_method():
    for module in modules("pipeline"):
        is_allowed = module in ("pipeline.run", "pipeline.curate")
        assert is_allowed or "pipeline.curate" not in brought_along(module), module


def test_init_files_are_empty():
    for package in ("pipeline", "trainer"):
        for path in (ROOT / package).rglob("__init__.py"):
            assert path.read_text() == "", path
