"""What `pip install` gives: commands, recipes, types, and one version everywhere."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest

from pipeline import records, run, scenes
from pipeline.commands.arguments import parse
from pipeline.config.curation import CurationConfig
from pipeline.config.fingerprint import fingerprint
from pipeline.config.recipes import load_config
from pipeline.export import manifest
from pipeline.selection import ledger as ledgers
from trainer import config_files, evaluate, export, tokenizer, train

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = {
    "pipeline.run": run.main,
    "pipeline.scenes": scenes.main,
    "trainer.train": train.main,
    "trainer.tokenizer": tokenizer.main,
    "trainer.evaluate": evaluate.main,
    "trainer.export": export.main,
}
SCRIPTS = {"curate": run.main, "tips-train": train.main}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_the_version(capsys, name):
    with pytest.raises(SystemExit) as stopped:
        COMMANDS[name](["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"{records.VERSION}\n"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_has_its_own_name_and_completes_words(capsys, monkeypatch, name):
    monkeypatch.setattr("sys.argv", [f"/usr/bin/{name}"])
    texts = []
    for flag in (["--help"], ["--print-completion", "bash"]):
        with pytest.raises(SystemExit):
            SCRIPTS[name](flag)
        texts.append(capsys.readouterr().out)
    usage, completion = texts
    assert usage.startswith(f"usage: {name} ")
    assert f" -F _shtab_{name.replace('-', '_')} {name}\n" in completion
    assert "--workdir" in completion or "--against" in completion


def test_a_module_completes_nothing(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"], "")
    usage = capsys.readouterr().out
    assert usage.startswith("usage: python -m pipeline.run")
    assert "--print-completion" not in usage


def test_recipes_of_the_package_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [granularity.name for granularity in _recipe("demo").granularities]
    assert names == ["short", "medium", "detailed"]
    assert config_files.load("trainer/configs/demo.py").n_steps == 120
    with pytest.raises(ValueError, match=r"curation_configs/none\.py: expected"):
        _recipe("none")


def _recipe(name: str) -> CurationConfig:
    return load_config(f"curation_configs/{name}.py")


def test_the_version_changes_no_fingerprint(monkeypatch):
    def fingerprints() -> tuple[str, ...]:
        header = {
            "config": repr(_recipe("demo")),
            "ledger": {},
            "fingerprints": {"captions": {}, "decisions": "d", "flags": None},
        }
        inputs = manifest.inputs_fingerprint(header, [])
        return fingerprint(_recipe("demo")), inputs

    before = fingerprints()
    monkeypatch.setattr(records, "VERSION", "9.9.9")
    monkeypatch.setattr(manifest, "VERSION", "9.9.9")
    assert fingerprints() == before


def test_the_ledger_has_the_version(tmp_path):
    ledger = ledgers.make_ledger({})
    ledgers.write_ledger(ledger, (str(tmp_path),))
    written = (tmp_path / "ledger.json").read_text()
    assert f'"version": "{records.VERSION}"' in written


def test_the_changelog_begins_with_the_version_or_what_comes_after_it():
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (\S+)", text, re.MULTILINE)
    newest = next(heading for heading in headings if heading != "Unreleased")
    assert newest == records.VERSION


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
    """A new environment with the wheel; it sees the packages of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = _copied_sources(folder / "sources")
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    _run(sys.executable, "-m", "pip", "wheel", *options, sources)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env/bin/python"
    _run(python, "-m", "pip", "install", "--no-deps", wheel)
    found = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    here = [path for path in sys.path if path.endswith("site-packages")]
    pathlib.Path(found.strip(), "dependencies.pth").write_text("\n".join(here) + "\n")
    return folder


def _copied_sources(folder: pathlib.Path) -> pathlib.Path:
    """What a wheel is made of: building leaves files, which do not belong here."""
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for package in ("pipeline", "trainer", "curation_configs"):
        shutil.copytree(ROOT / package, folder / package)
    return folder


def _run(*command: object, cwd: pathlib.Path | None = None) -> str:
    """Standard output, in a folder that is not the repository's."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = list(map(str, command))
    done = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_includes_types_recipes_and_checkpoints(installed):
    (wheel,) = installed.glob("*.whl")
    assert f"-{records.VERSION}-" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"pipeline/py.typed", "trainer/py.typed"} <= names
    assert "pipeline/report/page.html.j2" in names
    assert "curation_configs/tips.py" in names
    assert "curation_configs/checkpoints/tiny-siglip/model.safetensors" in names
    assert not [name for name in names if name.startswith(("tests", "tools"))]


@pytest.mark.slow
def test_the_wheel_runs_from_another_folder(installed, tmp_path):
    curate, train = (installed / "env/bin" / name for name in SCRIPTS)
    assert _run(curate, "--version", cwd=tmp_path) == f"{records.VERSION}\n"
    assert "usage: tips-train" in _run(train, "--help", cwd=tmp_path)
    recipe = ("--config", "curation_configs/demo.py", "--output", "run")
    command = [curate, "status", *recipe, "--input", "none/*.tar"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    # Recipe and checkpoints are there, so the pairs are what is missed.
    expected = "error: web=none/*.tar: expected a glob that matches shards\n"
    assert done.stderr.endswith(expected)
