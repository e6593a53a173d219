"""The examples that users copy, each run end to end."""

import json

import pyarrow.parquet as pq
import pytest

from pipeline import run as program
from tests.support.docs_commands import ROOT
from tests.support.planted import configured, draw, planted, save, write_words
from tests.support.tiny_run import Row, encoded, write_shard
from trainer import config_files, evaluate

RED, BLUE = (200, 30, 30), (30, 30, 200)


def curate(command, tmp_path, example) -> None:
    """Runs a command of `pipeline.run` with an example as its recipe."""
    flags = (
        "--config",
        str(ROOT / f"examples/{example}.py"),
        "--output",
        str(tmp_path / "RUN"),
    )
    program.main([command, *flags, "--input", str(tmp_path / "crawl" / "*.tar")])


def test_the_drop_rule_drops_with_a_reason_in_the_ledger(tmp_path):
    rows = [
        Row(encoded(RED, (64, 64)), "a red square"),
        Row(encoded(BLUE, (64, 64)), "BUY A BLUE SQUARE NOW"),
    ]
    write_shard(tmp_path / "crawl" / "0.tar", rows)
    for command in ("score", "select"):
        curate(command, tmp_path, "drop_rule")
    ledger = json.loads((tmp_path / "RUN" / "ledger.json").read_text())
    reasons = {reason: n for reason, n in ledger["dropped"].items() if n}
    assert (ledger["read"], ledger["kept"]) == (2, 1)
    assert reasons == {"boilerplate_alt_text": 1}


def test_the_captioner_captions_the_kept_images(tmp_path):
    white, black = (250, 250, 250), (5, 5, 5)
    rows = [
        Row(encoded(white, (64, 64)), "a white square"),
        Row(encoded(black, (64, 64)), "a black square"),
    ]
    write_shard(tmp_path / "crawl" / "0.tar", rows)
    for command in ("score", "select", "caption"):
        curate(command, tmp_path, "captioner")
    (table,) = (tmp_path / "RUN" / "captions").glob("brightness-*/*.parquet")
    texts = pq.read_table(table)["text"].to_pylist()
    assert texts == ["a bright image", "a dark image"]


@pytest.fixture
def checkpoint(tmp_path):
    """A workdir whose encoder maps each image to its mean color."""
    words = write_words(tmp_path / "words.model")
    config = configured(config_files.load(ROOT / "trainer/configs/demo.py"), words)
    return save(tmp_path / "MODEL", config, planted(config))


def test_the_evaluation_task_gives_numbers_as_json(tmp_path, checkpoint, capsys):
    data = draw(tmp_path / "scenes", n_columns=4)
    task = "examples.evaluation_task:SPREAD"
    flags = ("--checkpoint", str(checkpoint), "--data", str(data), "--task", task)
    evaluate.main(flags)
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["n_images"] == 4
    for token in ("cls_1", "cls_2", "mean"):
        assert -1 <= numbers[token]["mean_cosine"] <= 1
