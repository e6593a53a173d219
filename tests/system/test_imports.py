"""Who may import whom: the floors of the house, and what a room brings along."""

import ast
import functools
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = ("pipeline", "trainer", "recipes")

# A room imports rooms of lower floors only. A room is a package below `pipeline` or
# `trainer`, a module that stands there by itself, or `recipes`.
FLOORS = (
    {"pipeline.records"},
    {"recipes"},
    {"pipeline.storage", "pipeline.images"},
    {"pipeline.config", "pipeline.demo_web"},
    {"pipeline.sources", "pipeline.models"},
    {"pipeline.engine", "pipeline.scenes", "pipeline.photos"},
    {
        "pipeline.scoring",
        "pipeline.selection",
        "pipeline.captioning",
        "pipeline.export",
    },
    {"pipeline.curate", "pipeline.forecast", "pipeline.report"},
    {"pipeline.removal"},
    {"pipeline.commands"},
    {"pipeline.run"},
    {"trainer.command_line", "trainer.split_names"},
    {"trainer.distributed", "trainer.evaluation_config", "trainer.model_config"},
    {"trainer.objective_config", "trainer.optimizer_config"},
    {"trainer.config"},
    {"trainer.configs", "trainer.config_files"},
    {"trainer.data", "trainer.models"},
    {"trainer.step", "trainer.tokenizer", "trainer.verify"},
    {"trainer.loop"},
    {"trainer.exchange"},
    {"trainer.pretrained"},
    {"trainer.evals"},
    {"trainer.visuals"},
    {"trainer.evaluate", "trainer.export"},
    {"trainer.pictures", "trainer.train"},
)
STAGES = ("scoring", "selection", "captioning", "export")
# What the trainer may import of the pipeline.
DOORS = {"pipeline.records", "pipeline.storage", "pipeline.images"}

# Imports modules and prints what they have brought along.
PROGRAM = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def modules(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Module names of the programs to their files, `__init__` apart."""
    paths = [path for name in PROGRAMS for path in sorted((root / name).rglob("*.py"))]
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in paths
        if path.stem != "__init__"
    }


def named_in(path: pathlib.Path) -> set[str]:
    """Everything that the import statements of a file name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module}
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports(root: pathlib.Path) -> dict[str, set[str]]:
    """The modules of the programs, each to those that it imports."""
    name_to_path = modules(root)
    return {
        name: named_in(path) & set(name_to_path) for name, path in name_to_path.items()
    }


def room(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] == "recipes" else ".".join(parts[:2])


def faults(name_to_imports: Mapping[str, set[str]]) -> Iterator[str]:
    """Imports that do not point down."""
    room_to_floor = {name: n for n, names in enumerate(FLOORS) for name in names}
    for module, imported in name_to_imports.items():
        for other in sorted(imported):
            here, there = room(module), room(other)
            is_door = here.startswith("pipeline") or there.startswith("trainer")
            if here != there and room_to_floor[here] <= room_to_floor[there]:
                yield f"{module} imports {other} of its own floor or one above"
            elif there != "recipes" and not is_door and there not in DOORS:
                yield f"{module} imports {other}, which is no door of the pipeline"


def circle(name_to_imports: Mapping[str, set[str]]) -> list[str]:
    """Modules that import one another in a ring; empty where there is none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for other in sorted(name_to_imports.get(module, ())):
            if ring := walk(other, [*path, module]):
                return ring
        done.add(module)
        return []

    return next(filter(None, (walk(name, []) for name in name_to_imports)), [])


def test_every_import_points_down():
    assert list(faults(imports(ROOT))) == []


def test_no_module_imports_itself_by_way_of_others():
    assert circle(imports(ROOT)) == []


def test_every_room_has_a_floor():
    assert {room(name) for name in modules(ROOT)} == set().union(*FLOORS)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("pipeline/storage/files.py", "from pipeline.scoring import stage"),
        ("pipeline/scoring/stage.py", "from pipeline.selection.stage import Select"),
        ("pipeline/models/gemma.py", "import pipeline.engine.run_folder"),
        ("trainer/models/vit.py", "from trainer.step import losses"),
        ("trainer/train.py", "from pipeline.config import curation"),
        ("recipes/settings.py", "def f():\n    from pipeline.storage import files"),
    ],
)
def test_a_planted_upward_import_is_noticed(tmp_path, module, line):
    stage_names = ("scoring/stage", "selection/stage", "engine/run_folder")
    names = (*stage_names, "storage/files", "config/curation")
    others = [f"pipeline/{name}.py" for name in names]
    for name in (*others, "trainer/step/losses.py", module):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(faults(imports(tmp_path))) == []
    (tmp_path / module).write_text(line)
    (fault,) = faults(imports(tmp_path))
    assert fault.startswith(module.removesuffix(".py").replace("/", "."))


def test_a_planted_circle_is_noticed(tmp_path):
    for here, there in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / "recipes").mkdir(exist_ok=True)
        (tmp_path / f"recipes/{here}.py").write_text(f"from recipes import {there}")
    assert sorted(circle(imports(tmp_path))) == ["recipes.a", "recipes.b", "recipes.c"]


def test_only_the_method_imports_stages_and_only_commands_the_method():
    stages = {f"pipeline.{name}.stage" for name in STAGES}
    stages |= {"pipeline.captioning.flag_stage"}
    for module, imported in imports(ROOT).items():
        assert module == "pipeline.curate" or not stages & imported, module
        is_command = room(module) in ("pipeline.run", "pipeline.commands")
        assert is_command or "pipeline.curate" not in imported, module


def test_init_files_hold_a_docstring_and_nothing_else():
    for program in PROGRAMS:
        for path in (ROOT / program).rglob("__init__.py"):
            (statement,) = ast.parse(path.read_text()).body
            assert isinstance(statement, ast.Expr), path
            assert isinstance(statement.value, ast.Constant), path


@functools.cache
def brought_along(*names: str) -> frozenset[str]:
    """Modules in memory after imports in a fresh interpreter."""
    command = [sys.executable, "-c", PROGRAM, *names]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return frozenset(json.loads(done.stdout.splitlines()[-1]))


def packages(*names: str) -> set[str]:
    return {name.split(".")[0] for name in brought_along(*names)}


def modules_of(package: str) -> list[str]:
    return [name for name in modules(ROOT) if name.startswith(f"{package}.")]


def test_the_records_import_nothing_of_the_project():
    of_project = {n for n in brought_along("pipeline.records") if n in modules(ROOT)}
    assert of_project == {"pipeline.records"}


@pytest.mark.parametrize(
    "room", ["recipes", "pipeline.storage", "pipeline.images", "pipeline.demo_web"]
)
def test_doors_and_drawing_bring_no_framework(room):
    frameworks = {"apache_beam", "jax", "tensorflow", "torch", "transformers"}
    assert not frameworks & packages("pipeline.records", *modules_of(room))


@pytest.mark.parametrize("room", ["pipeline.models", "pipeline.config"])
def test_rooms_without_beam(room):
    with_torch = "pipeline.models.huggingface_captioner"  # which need not be there
    names = [name for name in modules_of(room) if name != with_torch]
    assert "apache_beam" not in packages(*names)
    assert "apache_beam" not in named_in(modules(ROOT)[with_torch])


def test_only_models_name_jax():
    for name, path in modules(ROOT).items():
        is_its_room = name.startswith(("pipeline.models.", "trainer."))
        assert is_its_room or not {"jax", "flax"} & named_in(path), name


def test_the_pipeline_never_imports_the_trainer_or_torch():
    assert not {"trainer", "torch"} & packages("pipeline.run")


def test_the_trainer_does_without_beam():
    commands = ("trainer.train", "trainer.pictures", "trainer.export")
    assert "apache_beam" not in packages(*commands)


def test_captioners_that_need_an_extra_are_imported_when_they_are_asked_for():
    with_extra = ("captioning.gemini", "models.huggingface_captioner")
    loaded = brought_along("pipeline.run")
    assert not {f"pipeline.{name}" for name in with_extra} & loaded
