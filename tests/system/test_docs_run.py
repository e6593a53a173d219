"""The commands of the documentation run as they are, on drawn pairs."""

import csv
import json
import os
import pathlib
import subprocess
import sys
import tarfile

import pytest

from pipeline import scenes
from tests.support.docs_commands import ROOT, blocks, fenced

pytestmark = pytest.mark.slow
# Drawn photos have fewer different words than real ones.
SMALLER = {"--vocabulary-size 1000": "--vocabulary-size 200"}
SMALLER |= {"vocabulary_size=1000": "vocabulary_size=200 --set n_steps=25"}
LIMIT_S = 1200


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """A reader's folder: `python` is this one, recipes are the project's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "curation_configs").symlink_to(ROOT / "curation_configs")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{python.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def type_in(block: str) -> str:
    """Runs a block of commands, none of which may fail; returns standard output."""
    command = ["bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def block_with(page: str, words: str) -> str:
    """Returns the only block of a page that has these words."""
    (found,) = (b for b in blocks(ROOT / page, "sh") if words in b)
    return found


def ledger_of(run: pathlib.Path) -> dict:
    found = json.loads((run / "ledger.json").read_text())
    n_dropped = sum(found["dropped"].values())
    assert found["read"] == found["kept"] + n_dropped + found["unreadable"]
    return found


def shown_by_the_tour() -> list[tuple[str, list[str]]]:
    """Each block of commands, and the lines that the tour shows of its output."""
    steps: list[tuple[str, list[str]]] = []
    for language, text in fenced(ROOT / "docs/tour.md"):
        if language == "sh":
            steps.append((text, []))
        elif language == "text":
            steps[-1][1].extend(line for line in text.splitlines() if line != "...")
    return [step for step in steps if "make install" not in step[0]]


def test_the_tour_prints_what_it_shows_and_leads_to_an_encoder(folder):
    for commands, lines in shown_by_the_tour():
        output = type_in(f"exec 2>&1\n{commands}").splitlines()
        assert [line for line in lines if line not in output] == [], commands
    assert ledger_of(folder / "RUN")["read"] == 300
    assert (folder / "ENCODER" / "model.safetensors").is_file()
    picture = folder / "picture.svg"
    type_in(f"python -m tools.picture --run RUN --output {picture}")
    assert picture.read_text().count("<image ") > 5
    assert picture.stat().st_size < 300_000


def test_a_finished_data_set_is_captioned_again(folder):
    type_in(block_with("docs/recipes.md", "brief = Granularity"))
    n_exported = json.loads((folder / "RUN/webdataset/manifest.json").read_text())[
        "n_samples"
    ]
    again = json.loads((folder / "AGAIN/tfrecords/manifest.json").read_text())
    assert ledger_of(folder / "AGAIN")["kept"] == n_exported == again["n_samples"]
    assert again["n_without_granularity"] == {"brief": 0}


def draw_photos(folder: pathlib.Path) -> int:
    """Writes PHOTOS and captions.csv as a reader has them; returns their number."""
    scenes.main(["--output", "WEB", "--n-pairs", "200"])
    (folder / "PHOTOS").mkdir()
    rows = []
    for shard in sorted(folder.glob("WEB/*/*.tar")):
        if shard.parent.name == "crawl":
            continue  # its pairs are noisy
        with tarfile.open(shard) as tar:
            for member in tar:
                name = f"{shard.parent.name}-{pathlib.Path(member.name).name}"
                file = tar.extractfile(member)
                assert file is not None
                if name.endswith(".jpg"):
                    (folder / "PHOTOS" / name).write_bytes(file.read())
                elif name.endswith(".txt"):
                    rows.append((name.replace(".txt", ".jpg"), file.read().decode()))
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "caption"), *rows])
    return len(rows)


def test_own_photos_are_curated_trained_on_and_evaluated(folder):
    n_photos = draw_photos(folder)
    page = "docs/own_photos.md"
    usual = block_with(page, "pipeline.photos").split("\npython ")
    tiny = block_with(page, "tiny-siglip").removeprefix("python ")
    commands = "\npython ".join([usual[0], tiny.rstrip(), *usual[2:]])
    for large, small in SMALLER.items():
        assert large in commands
        commands = commands.replace(large, small)
    output = type_in(commands)
    ledger = ledger_of(folder / "RUN")
    n_held_out = json.loads(output[output.index("{") :])["caption"]["n_images"]
    assert ledger["read"] + n_held_out == n_photos
    assert ledger["kept"] > n_photos / 2


def test_the_site_has_no_broken_link(tmp_path):
    pytest.importorskip("mkdocs")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (site / "docs/formats/index.html").read_text()
    assert "<td>which image it is of" in page or "<code>image_hash</code>" in page
    assert "TrainConfig" in (site / "docs/configuration/index.html").read_text()
