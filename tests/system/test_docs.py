"""The documentation is true: its commands, code, fields, paths and links."""

import argparse
import ast
import dataclasses
import importlib.util
import itertools
import pathlib
import pydoc
import re
from collections.abc import Callable, Sequence

import pytest

from pipeline import photos, scenes
from pipeline.commands import arguments, beam_flags, configuration
from pipeline.config.curation import CurationConfig
from pipeline.config.recipes import load_config
from pipeline.records import VERSION
from recipes.assignments import override
from tests.support.docs_commands import PAGES, ROOT, blocks, commands
from tests.system.test_error_messages import GAP, text_of
from tools import config_reference
from trainer import command_line, config_files, tokenizer
from trainer.config import TrainConfig
from trainer.evaluation_config import EvaluationConfig

# Programs of others, whose arguments are not checked.
OTHERS = (
    ".",
    "cat",
    "cd",
    "docker",
    "export",
    "gcloud",
    "hf",
    "img2dataset",
    "pip",
    "pre-commit",
    "wget",
)
COMPLETE = ("README.md", "own_photos.md", "recipes.md")  # their commands are whole
# Flags that a shortened command leaves to the reader.
CURATION = ("--config", "FILE.py", "--output", "RUN", "--input", "CRAWL/*.tar")
TRAINING = ("--config", "trainer/configs/demo.py", "--data", "RUN", "--workdir", "DIR")
RECIPE = "curation_configs/demo.py"  # in place of one that the reader writes


def pipeline_run(words: Sequence[str]) -> None:
    command, of_beam = arguments.parse(words)
    beam_flags.beam_options(of_beam)
    if not pathlib.Path(ROOT, command.config).is_file():
        command.config = RECIPE
    if command.granularity:
        configuration.granularities_of(load_config(command.config), ())
    configuration.configured(command)


def trainer_train(words: Sequence[str]) -> None:
    flags = command_line.train_parser().parse_args(words)
    config_files.load(flags.config, flags.overrides)


def trainer_evaluate(words: Sequence[str]) -> None:
    flags = command_line.evaluate_parser().parse_args(words)
    config_files.changed(EvaluationConfig(), flags.overrides)


def parsed(parser: Callable[[], argparse.ArgumentParser]):
    return lambda words: parser().parse_args(words)


READERS = {
    "pipeline.run": pipeline_run,
    "pipeline.photos": parsed(photos._parser),
    "pipeline.scenes": parsed(scenes._parser),
    "trainer.train": trainer_train,
    "trainer.evaluate": trainer_evaluate,
    "trainer.export": parsed(command_line.export_parser),
    "trainer.tokenizer": parsed(tokenizer._parser),
}


def read(words: Sequence[str]) -> None:
    """Raises ValueError, or exits, if a command is wrong."""
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(rest) <= set(targets), words
    elif program.endswith("python") and rest[0] == "-m":
        _, module, *arguments = rest
        if module in READERS:
            READERS[module](arguments)
        else:
            _find_flags(module, arguments)
    elif program == "curate":
        pipeline_run(rest)
    elif program == "tips-train":
        trainer_train(rest)
    else:
        assert program in (*OTHERS, "python"), words


def _find_flags(module: str, arguments: Sequence[str]) -> None:
    """Checks the flags of tools and benchmarks, whose parsers are inside functions."""
    found = importlib.util.find_spec(module)
    assert found is not None, module
    assert found.origin is not None, module
    if module.startswith(("tools.", "benchmarks.")):
        source = pathlib.Path(found.origin).read_text()
        for flag in filter(lambda word: word.startswith("--"), arguments):
            assert f'"{flag}"' in source, (module, flag)


def _with_the_rest(words: Sequence[str]) -> list[str]:
    """Completes a shortened command with the usual flags."""
    given = [word for word in words if word != "..."]
    module = given[2] if given[1:2] == ["-m"] else ""
    usual = {"pipeline.run": CURATION, "trainer.train": TRAINING}.get(module, ())
    for flag, value in zip(usual[::2], usual[1::2], strict=True):
        if flag not in given:
            given += [flag, value]
    return given


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_ones_that_the_programs_take(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in blocks(page, "sh"):
        for words in commands(block):
            is_whole = page.name in COMPLETE
            assert not is_whole or "..." not in words, words
            try:
                read(words if is_whole else _with_the_rest(words))
            except (SystemExit, ValueError) as error:
                pytest.fail(f"{page.name}: {' '.join(words)}: {error}")


@pytest.mark.parametrize(
    "command",
    [
        "python -m pipeline.run curate --config curation_configs/tips.py --outptu RUN",
        "python -m pipeline.run curate --config curation_configs/tips.py --output RUN"
        " --input 'A/*.tar' --set selection.alignment.min_score=1",
        "python -m trainer.train --config trainer/configs/demo.py --data RUN"
        " --workdir DIR --set data.n_crops=1",
        "srun --wait 1 make",
        "make everything",
        "python -m benchmarks.score --speed 1",
    ],
)
def test_a_command_that_no_program_takes_is_noticed(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    (words,) = commands(command)
    with pytest.raises((AssertionError, SystemExit, ValueError)):
        read(words)


def test_commands_are_found_as_a_shell_finds_them():
    block = """\
A=1 one --flag 'a b' \\
    --more  # a comment
cat > x <<'END'
two
END
ssh HOST --command 'cd x && python -m trainer.train --data D'
"""
    assert list(commands(block)) == [
        ["one", "--flag", "a b", "--more"],
        ["cat", ">", "x"],
        ["cd", "x"],
        ["python", "-m", "trainer.train", "--data", "D"],
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_is_python(page):
    for number, block in enumerate(blocks(page, "python")):
        compile(block, f"{page.name}, block {number}", "exec")


def assignments_of_the_page_on_settings() -> list[str]:
    spans = re.findall(r"`([^`]*)`", (ROOT / "docs" / "settings.md").read_text())
    recipes = CurationConfig, TrainConfig
    names = "|".join(
        field.name for kind in recipes for field in dataclasses.fields(kind)
    )
    return [s.strip('"') for s in spans if re.match(rf'"?({names})(\.\w+)*=', s)]


@pytest.mark.parametrize("assignment", assignments_of_the_page_on_settings())
def test_the_page_on_settings_shows_what_is_accepted(assignment):
    name = re.split(r"[.=]", assignment)[0]
    if name in {field.name for field in dataclasses.fields(CurationConfig)}:
        config = load_config("curation_configs/demo.py")
        assert override(config, [assignment]) != config
    else:
        config = config_files.load("trainer/configs/demo.py", [])
        changed = config_files.load("trainer/configs/demo.py", [assignment])
        assert changed != config


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_the_page_on_extending_shows_the_examples_as_they_are():
    shown = blocks(ROOT / "docs/extending.md", "python")
    assert [path.name for path in EXAMPLES if path.read_text() not in shown] == []


def test_other_code_of_the_page_on_extending_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "extending"}
    examples = [path.read_text() for path in EXAMPLES]
    for block in blocks(ROOT / "docs/extending.md", "python"):
        if block not in examples:
            exec(block, names)
    assert "MeanColor" in names


CONFIGURATIONS = [
    kind
    for root in (CurationConfig, TrainConfig)
    for kind in config_reference.configurations(root)
    if dataclasses.is_dataclass(kind)
]


@pytest.mark.parametrize("kind", [*CONFIGURATIONS, *config_reference.RULES])
def test_every_field_of_a_configuration_is_described(kind):
    fields = config_reference.fields(kind)
    assert [field.name for field in fields if not field.meaning] == []
    names = [field.name for field in dataclasses.fields(kind)]
    assert [field.name for field in fields] == names


def test_the_reference_has_types_defaults_and_what_a_field_does():
    text = config_reference.reference()
    assert "| `max_pixels` | `int` | `89478485` | Pillow's own bound" in text
    assert "| `checkpoint` | `str` | **required** | folder or Hugging Face id |" in text
    assert "| `head` | [HeadConfig](#headconfig) | `HeadConfig()` |" in text
    assert "| `sources` | tuple of [ImageTextSource](#imagetextsource) | `()` |" in text
    assert (
        "| [MinScore](#minscore) or [KeepFraction](#keepfraction) or `None` |" in text
    )
    assert "| `ibot++` | all patches (TIPSv2) |" in text
    assert text.count("### ") == len({*re.findall("^### .*", text, re.MULTILINE)})


def test_the_messages_on_troubles_are_those_of_the_code():
    packages = (ROOT / name for name in ("pipeline", "recipes", "trainer"))
    paths = (path for package in packages for path in package.rglob("*.py"))
    texts = {
        " ".join(re.findall(r"\w+", text_of(node).replace(GAP, " ")))
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
    }
    code = "\n".join(texts)
    page = (ROOT / "docs/troubleshooting.md").read_text()
    found = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    assert len(found) > 30
    for message in found:
        for part in message.split("..."):
            assert " ".join(re.findall(r"\w+", part)) in code, message


PATH = re.compile(
    r"`((?:pipeline|trainer|recipes|tools|tests|benchmarks|curation_configs|examples)"
    r"/[\w./-]*)`"
)
NAME = re.compile(r"`((?:pipeline|trainer|recipes)(?:\.\w+)+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_names_of_code_exist(page):
    text = page.read_text()
    paths = [path for path in PATH.findall(text) if "NAME" not in path]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    names = NAME.findall(text)
    assert [name for name in names if pydoc.locate(name) is None] == []


def tree_of_the_readme() -> set[str]:
    """Paths of the folders and files that the README's tree names."""
    text = (ROOT / "README.md").read_text()
    (tree,) = re.findall(r"^```\n(pipeline/\n.*?)^```$", text, re.MULTILINE | re.DOTALL)
    paths, folder = set(), ""
    for line in tree.splitlines():
        words = line.split()
        if not line.startswith(" "):
            folder = words[0]
            paths.add(folder)
        else:
            names = itertools.takewhile(lambda w: w.endswith(("/", ".py")), words)
            paths |= {folder + name for name in names}
    return paths


def test_the_tree_of_the_readme_names_every_package_and_nothing_else():
    paths = tree_of_the_readme()
    assert [path for path in paths if not (ROOT / path).exists()] == []
    packages = {
        f"{file.parent.relative_to(ROOT)}/"
        for program in ("pipeline", "trainer")
        for file in (ROOT / program).glob("*/__init__.py")
    }
    assert packages - paths == {"trainer/configs/"}


def test_the_readme_is_short_and_its_pictures_are_small():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160
    pictures = [*(ROOT / "docs/images").iterdir()]
    assert max(path.stat().st_size for path in pictures) < 300_000


def test_the_citation_names_the_version():
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()


def test_marks_in_pages_name_classes():
    from_code = re.compile(r"<!-- (?:fields|values) of (\S+)\.(\w+) -->")
    found = [pair for page in PAGES for pair in from_code.findall(page.read_text())]
    assert len(found) >= 7
    for module, name in found:
        assert hasattr(importlib.import_module(module), name), name
