"""Whatever is wrong with the file of a recipe is one line that says where."""

import pathlib

import pytest

from pipeline import run
from pipeline.config.curation import CurationConfig
from pipeline.config.recipes import load_config
from trainer import config_files, train

BROKEN = {
    "syntax": ("def get_config(:\n", "line 1: SyntaxError: invalid syntax"),
    "indent": ("def get_config():\nreturn 1\n", "line 2: IndentationError: expected"),
    "import": ("import no_such_module\n", "line 1: ModuleNotFoundError: No module nam"),
    "name": ("x = 1\ny = z\n", "line 2: NameError: name 'z' is not defined"),
    "within": ("def get_config():\n    return {}['a']\n", "line 2: KeyError: 'a'"),
    "deeper": (
        "def f():\n    1 / 0\ndef get_config():\n    f()\n",
        "line 2: ZeroDivisionError: division by zero",
    ),
    "elsewhere": (
        "import json\ndef get_config():\n    json.loads('{')\n",
        "line 3: JSONDecodeError: Expecting property name",
    ),
    "value": ("def get_config():\n    int('x')\n", "line 2: ValueError: invalid liter"),
    "lines": (
        "def get_config():\n    raise OSError('a\\nb' * 999)\n",
        "line 2: OSError: a ba ba b",
    ),
    "exit": ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
    "own": (
        "class Own(BaseException): ...\ndef get_config():\n    raise Own('why')\n",
        "line 3: Own: why",
    ),
    "silent": (
        "class Own(Exception):\n    def __str__(self):\n        1 / 0\nraise Own\n",
        "line 4: Own: its message cannot be shown",
    ),
    "moved": (
        "from pipeline.config import (\n    Granularity,\n    Limits,\n)\n",
        "; Granularity is in pipeline.config.captions; Limits is in pipeline.images.",
    ),
    "moved_module": (
        "from pipeline.filters import FewWords, NoSuchRule\n",
        "'pipeline.filters'; FewWords is in pipeline.selection.rules",
    ),
    "moved_settings": (
        "from trainer.step import OptimizerConfig\n",
        "OptimizerConfig is in trainer.optimizer_config",
    ),
    "unshown": (
        "from pipeline.selection.rules import FewWords\n"
        "class Own:\n    def __repr__(self):\n        1 / 0\n"
        "def get_config():\n    return FewWords(Own())\n",
        "line 6: min_words=a Own: expected int",
    ),
    "endless": (
        "def get_config():\n    return get_config()\n",
        "line 2: RecursionError: maximum recursion depth",
    ),
    "arguments": ("def get_config(size): ...\n", "TypeError: get_config() missing 1"),
    "missing": ("def config(): ...\n", "expected a function get_config() in it"),
    "no_function": ("get_config = 3\n", "expected a function get_config() in it"),
    "none": ("def get_config(): ...\n", "get_config() gave NoneType, expected "),
    "class": ("class get_config: ...\n", "get_config() gave get_config, expected "),
    "binary": (b"\x00\x01", "source code string cannot contain null bytes"),
    "not_utf8": (b"x = '\xe9'\n", "SyntaxError: (unicode error) 'utf-8' codec"),
    "setting": (
        "from pipeline.selection.rules import FewWords\n\n\n"
        "def get_config():\n    return FewWords('2')\n",
        "line 5: min_words='2': expected int, a whole number",
    ),
}


@pytest.mark.parametrize("load", [load_config, config_files.load])
@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_recipe_is_one_line_with_its_place(tmp_path, load, content, message):
    path = tmp_path / "recipe.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as error:  # noqa: PT011 (read below)
        load(str(path))
    assert str(error.value).startswith(f"--config {path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("load", [load_config, config_files.load])
@pytest.mark.parametrize("name", ["", "none.py", "x" * 500, "a\0b"])
def test_what_is_no_file_is_named(tmp_path, load, name):
    with pytest.raises(ValueError, match=r"expected a Python file with get_config\(\)"):
        load(f"{tmp_path}/{name}")


def test_what_a_recipe_prints_is_no_output_of_the_command(tmp_path, capsys):
    path = tmp_path / "recipe.py"
    path.write_text("print('hello')\ndef get_config():\n    return 1\n")
    with pytest.raises(ValueError, match="get_config"):
        load_config(str(path))
    assert capsys.readouterr() == ("", "hello\n")


def test_a_recipe_of_the_other_program_is_refused():
    with pytest.raises(ValueError, match="gave CurationConfig, expected TrainConfig"):
        config_files.load("curation_configs/demo.py")
    with pytest.raises(ValueError, match="gave TrainConfig, expected CurationConfig"):
        load_config("trainer/configs/demo.py")


def test_both_programs_end_with_2_and_one_line(tmp_path, capsys):
    path = tmp_path / "recipe.py"
    path.write_text("import no_such_module\n")
    output = ["--output", str(tmp_path / "run")]
    assert_exits_with_2(run.main, ["status", "--config", str(path), *output], capsys)
    places = ["--data", str(tmp_path), "--workdir", str(tmp_path / "run")]
    assert_exits_with_2(train.main, ["--config", str(path), *places], capsys)
    assert not (tmp_path / "run").exists()


def assert_exits_with_2(main, arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --config ")
    assert "line 1: ModuleNotFoundError" in line


def test_all_recipes_of_the_project_load():
    for path in sorted(pathlib.Path("curation_configs").glob("*.py")):
        if path.stem not in ("__init__", "granularities"):
            assert isinstance(load_config(str(path)), CurationConfig)
    for path in sorted(pathlib.Path("trainer/configs").glob("*.py")):
        if path.stem != "__init__":
            config_files.load(path)
