"""A model of the trainer as the encoder of a whole run."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import run
from pipeline.demo_web import crawl
from tests.support.tiny_tips import model_of, write
from trainer.config import FeedForward

N_PAIRS = 250  # the fewest with every planted kind
TOKENS = ("alt_text", "synthetic_caption")


@pytest.mark.slow
def test_a_run_scores_and_selects_with_each_image_vector(tmp_path: Path):
    """Each has its own scores; the pairs are read once, and every one is decided."""
    web, output = tmp_path / "web", tmp_path / "run"
    crawl.clear(web)
    crawl.write(crawl.Web(N_PAIRS, 1, n_evaluation=64, n_seeds=64), web)
    encoder = write(tmp_path / "tips", model_of(FeedForward.GELU, size_px=56))
    for token in TOKENS:
        for stage in ("score", "select"):
            run.main(
                [
                    *(stage, "--config", "curation_configs/demo.py"),
                    *("--output", str(output), "--input", f"{web}/crawl/*.tar"),
                    *("--eval", f"scenes={web}/evaluation/*.tar"),
                    *("--seeds", f"scenes={web}/seeds/*.tar"),
                    *("--set", f"encoder.checkpoint={encoder}"),
                    *("--set", f"encoder.cls_token={token}"),
                ]
            )
        ledger = json.loads((output / "ledger.json").read_text())
        decided = (
            ledger["kept"] + ledger["unreadable"] + sum(ledger["dropped"].values())
        )
        assert decided == ledger["read"] == N_PAIRS
    tables = list((output / "scores").glob("embedding-*"))
    assert len(tables) == 2 * 2  # of the crawl, and of evaluation images and seeds
    scores = [pairs for table in tables if len(pairs := column(table)) == N_PAIRS]
    first, second = (np.array(found, float) for found in scores)
    is_scored = np.isfinite(first)
    assert is_scored.sum() > 200
    assert np.abs(first - second)[is_scored].max() > 1e-3


def column(folder: Path) -> list[float]:
    """The alignment scores of all lots of a table."""
    return [
        score
        for path in sorted(folder.rglob("*.parquet"))
        for score in pq.read_table(path)["alignment_score"].to_pylist()
    ]
