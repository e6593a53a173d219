"""Who may import whom: the rules of the architecture, seen in a fresh interpreter."""

import ast
import functools
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
PREFIXES = ("pipeline", "trainer", "apache_beam", "jax", "torch", "tensorflow")
STAGES = ("scoring", "selection", "captioning", "flagging", "export")

# Imports modules and prints what they have brought along.
PROGRAM = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""

# The same for each module by itself, where only those of the pipeline are of interest.
PIPELINE_PROGRAM = """
import importlib, json, sys
for name in sys.argv[1:]:
    for loaded in [m for m in sys.modules if m.split(".")[0] == "pipeline"]:
        del sys.modules[loaded]
    importlib.import_module(name)
    print(json.dumps([m for m in sys.modules if m.startswith("pipeline.")]))
"""


def modules(package: str) -> list[str]:
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths]
    return [name for name in names if not name.endswith("__init__")]


@functools.cache
def brought_along(*names: str) -> frozenset[str]:
    """Modules in memory after imports in a fresh interpreter."""
    loaded = lines_of(PROGRAM, *names)[-1]
    return frozenset(name for name in loaded if name.split(".")[0] in PREFIXES)


def lines_of(program: str, *names: str) -> list[list[str]]:
    """What a program prints in a fresh interpreter."""
    command = [sys.executable, "-c", program, *names]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def packages(*names: str) -> set[str]:
    return {name.split(".")[0] for name in brought_along(*names)}


def named_in(module: str) -> set[str]:
    """Modules that the import statements of a module name."""
    path = ROOT / (module.replace(".", "/") + ".py")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module}
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_records_import_nothing_of_the_project_and_no_framework():
    of_project = {n for n in brought_along("pipeline.records") if "." in n}
    assert of_project == {"pipeline.records"}


def test_the_trainer_imports_of_the_pipeline_three_doors():
    """The records, the decoder, and what the commands share."""
    commands = ("trainer.train", "trainer.pictures", "trainer.export")
    loaded = {n for n in brought_along(*commands) if n.startswith("pipeline.")}
    habits = ("cli", "interrupts", "file_errors", "new_folder")
    recipes = ("expect", "recipe_file", "settings")
    names = ("records", *habits, *recipes)
    decoder = brought_along("pipeline.images.decoder") - {"pipeline"}
    assert loaded == {f"pipeline.{name}" for name in names} | decoder
    assert "apache_beam" not in packages(*commands)


def test_the_decoder_does_without_frameworks_and_recipes():
    assert packages("pipeline.images.decoder") == {"pipeline"}
    own = ("pipeline.images.decoder", "pipeline.image_files", "pipeline.images.limits")
    others = {
        n for n in brought_along("pipeline.images.decoder") if not n.startswith(own)
    }
    assert others == {"pipeline", "recipes.validation", "recipes.settings"}


def test_the_pipeline_never_imports_the_trainer_or_torch():
    assert not {"trainer", "torch"} & packages("pipeline.run")


def test_the_models_do_without_beam():
    with_torch = "pipeline.models.huggingface_captioner"  # which need not be there
    names = [name for name in modules("pipeline/models") if name != with_torch]
    assert "apache_beam" not in packages(*names)
    assert "apache_beam" not in named_in(with_torch)


def test_captioners_that_need_an_extra_are_imported_when_they_are_asked_for():
    loaded = brought_along("pipeline.run")
    assert (
        not {"pipeline.captioning.gemini", "pipeline.models.huggingface_captioner"}
        & loaded
    )


def test_the_demo_web_is_drawn_without_beam_and_jax():
    assert not {"apache_beam", "jax"} & packages("pipeline.scenes")


def test_a_stage_imports_no_other_stage():
    stages = [f"pipeline.{stage}" for stage in STAGES]
    found = lines_of(PIPELINE_PROGRAM, *stages)
    assert [set(stages) & set(loaded) for loaded in found] == [{s} for s in stages]


def test_only_the_method_imports_stages_and_only_the_command_line_the_method():
    stages = {f"pipeline.{stage}" for stage in STAGES}
    for module in modules("pipeline"):
        named = named_in(module)
        assert module == "pipeline.curate" or not stages & named, module
        assert module == "pipeline.run" or "pipeline.curate" not in named, module


def test_init_files_hold_no_code():
    for package in ("pipeline", "trainer"):
        for path in (ROOT / package).rglob("__init__.py"):
            tree = ast.parse(path.read_text())
            n_docstrings = int(ast.get_docstring(tree) is not None)
            assert len(tree.body) == n_docstrings, path
