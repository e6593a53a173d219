"""The examples that users copy, each run end to end."""

import json
import pathlib

import numpy as np
import pytest

from pipeline import run as program
from pipeline.records import INDEX_DTYPE, Sample, parse_sample
from tests.support.docs_commands import ROOT
from tests.support.planted import configured, draw, planted, save, write_words
from tests.support.tiny_run import Row, encoded, write_shard
from trainer import config_files, evaluate

RED, BLUE = (200, 30, 30), (30, 30, 200)


def curate(command, tmp_path, example) -> None:
    """Runs a command of `pipeline.run` with an example as its recipe."""
    recipe, output = ROOT / f"examples/{example}.py", tmp_path / "RUN"
    crawl = tmp_path / "crawl" / "*.tar"
    flags = ("--config", recipe, "--output", output, "--input", crawl)
    small = ("--set", "encoder.batch_size=4")
    program.main([command, *map(str, flags), *small])


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


def read_samples(shard: pathlib.Path) -> list[Sample]:
    """The samples of a training shard, by its index."""
    data = shard.read_bytes()
    index = np.fromfile(f"{shard}.index", INDEX_DTYPE)
    return [parse_sample(data[start : start + n]) for start, n in index.tolist()]


def test_captions_of_the_captioner_reach_the_export(tmp_path):
    white, black = (250, 250, 250), (5, 5, 5)
    rows = [
        Row(encoded(white, (64, 64)), "a white square"),
        Row(encoded(black, (64, 64)), "a black square"),
    ]
    write_shard(tmp_path / "crawl" / "0.tar", rows)
    curate("curate", tmp_path, "captioner")
    (shard,) = (tmp_path / "RUN" / "tfrecords").glob("*.tfrecord")
    texts = {
        sample.alt_text: sample.captions["brightness"] for sample in read_samples(shard)
    }
    assert texts == {
        "a white square": ("a bright image",),
        "a black square": ("a dark image",),
    }


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
