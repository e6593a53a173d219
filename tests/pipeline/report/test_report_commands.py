"""`report`, `show` and `find` on the command line."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from pipeline import run as command_line
from pipeline.config.curation import ImageTextSource
from pipeline.engine import error_tables, run_lock
from pipeline.engine.lot_plan import singles
from pipeline.records import Pair
from pipeline.report import encoder_pictures
from tests.support.report_runs import ScoredRow, make_run

CHECKPOINT = "curation_configs/checkpoints/tiny-siglip"
RECIPE = """
from tests.support import report_runs
from pipeline.config.curation import CurationConfig, EncoderConfig, ImageTextSource

def get_config():
    names = ("crawl", "evaluation", "seeds")
    crawl, evaluation, seeds = (
        ImageTextSource(name, f"{ROOT}/{name}/*.tar") for name in names
    )
    return CurationConfig(
        encoder=EncoderConfig(CHECKPOINT),
        selection=report_runs.SELECTION,
        sources=(crawl,),
        evaluation_sets=(evaluation,),
        seed_sets=(seeds,),
    )
"""


@pytest.fixture
def command(tmp_path) -> list[str]:
    """Flags of a run over drawn pairs that are scored and decided on."""
    path = tmp_path / "recipe.py"
    path.write_text(f"ROOT = {str(tmp_path)!r}\nCHECKPOINT = {CHECKPOINT!r}\n{RECIPE}")
    rows = [ScoredRow(), ScoredRow("a gray wall")]
    make_run(tmp_path, [rows], keep_all=True, checkpoint=CHECKPOINT)
    return ["--config", str(path), "--output", str(tmp_path / "run")]


def error_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        command_line.main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_report_is_written_and_named(capsys, command, tmp_path):
    command_line.main(["report", *command])
    path = tmp_path / "run/report/index.html"
    assert capsys.readouterr().out == f"report: {path}\n"
    assert path.read_text().startswith("<!doctype html>")


def test_a_report_shows_what_an_encoder_sees(capsys, command, tmp_path):
    page = tmp_path / "run/report/index.html"
    noise = np.random.default_rng(0).integers(0, 255, (300, 1300, 3), np.uint8)
    for folder in ("run/pictures", "other"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(encoder_pictures.N_PICTURES + 1):
            drawn = noise if number == 0 else noise[:9, :9]
            Image.fromarray(drawn).save(tmp_path / folder / f"{number:02d}-a&b.png")
    (tmp_path / "other/00-a&b.png").write_bytes(b"no image")
    command_line.main(["report", *command])
    text = page.read_text()
    assert text.count('alt="00-a&amp;b.png"') == 1
    assert text.count("-a&amp;b.png</bdi>") == encoder_pictures.N_PICTURES
    assert '<a href="#seen">' in text
    found = re.findall(r'src="([^"]*)" alt="\d\d-a&amp;b.png"', text)
    assert 20_000 < max(map(len, found)) < 1.4 * 120_000
    command_line.main(["report", *command, "--pictures", str(tmp_path / "other")])
    assert 'alt="00-a&amp;b.png"' not in page.read_text()
    assert 'alt="01-a&amp;b.png"' in page.read_text()
    capsys.readouterr()
    nowhere = error_of(capsys, "report", *command, "--pictures", "nowhere")
    assert nowhere == "error: --pictures nowhere: expected PNGs of trainer.pictures"


def test_find_and_show_print_what_is_known(capsys, command, tmp_path):
    command_line.main(["find", *command, "--text", "wall"])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("a gray wall")
    image = tmp_path / "image.png"
    command_line.main(["show", line.split()[0], *command, "--image", str(image)])
    said = capsys.readouterr().out
    assert "alt text               a gray wall\n" in said
    assert image.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "run/lock.json").exists()


def test_contradictory_flags_are_named(capsys, command, tmp_path):
    undecided = [*command, "--set", "selection.alignment.min_score=0.9"]
    expected = "expected `select` to be done before"
    assert expected in error_of(capsys, "report", *undecided)
    assert expected in error_of(capsys, "find", *undecided)
    against = ["--against", str(tmp_path / "none")]
    assert "--against" in error_of(capsys, "report", *command, *against)
    assert "expected a sample id" in error_of(capsys, "show", "wall", *command)
    assert "SAMPLE_ID" in error_of(capsys, "show", *command)
    assert "expected NAME=LOW:HIGH" in error_of(
        capsys, "find", *command, "--score", "size"
    )
    assert "--limit -1: expected" in error_of(capsys, "find", *command, "--limit", "-1")


def test_status_shows_the_progress_of_another_command(capsys, command, tmp_path):
    figures = {
        "stage": "score",
        "state": "running",
        "n_done": 3,
        "n_total": 9,
        "elapsed_s": 4.0,
        "left_s": 8.0,
        "n_rows": 1200,
        "rows_per_s": 300.0,
        "n_errors": 2,
        "updated_s": 0.0,
    }
    path = tmp_path / "run/progress.json"
    path.write_text(json.dumps({"current": figures}))
    with run_lock.acquire(str(tmp_path / "run"), "curate"):
        command_line.main(["status", *command])
    line = capsys.readouterr().out.splitlines()[0]
    expected = "running: score: 3 of 9 after 4 s, 1,200 rows, 300.0/s, 8 s left, 2"
    assert line.startswith(expected)
    command_line.main(["status", *command])
    line = capsys.readouterr().out.splitlines()[0]
    assert line == "stopped: score: 3 of 9; the same command resumes"


def test_status_counts_what_summaries_say(capsys, command, tmp_path):
    pair = Pair(b"\0" * 16, "a", "", "", b"", "", 0, 0, 0, 0, "")
    source = ImageTextSource("crawl", str(tmp_path / "crawl/*.tar"))
    (lot,) = singles(source)
    root = str(tmp_path / "run")
    for n in range(7):
        reasons = (OSError("gone"), ValueError(f"reason {n}"))
        failed = [error_tables.Failure.of("caption", lot, pair, one) for one in reasons]
        error_tables.write(root, "caption", f"lot-{n}", failed)
    command_line.main(["status", *command])
    said = capsys.readouterr().out
    assert "scored: 1 of 1 lots, 2 pairs, 0 of them unreadable\n" in said
    (errors,) = [line for line in said.splitlines() if line.startswith("errors in")]
    assert errors.startswith("errors in caption: 7 x ")
    assert errors.endswith(", 3 more reasons")
