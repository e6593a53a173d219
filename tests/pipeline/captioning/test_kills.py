"""Caption, killed again and again by SIGKILL, ends with the bytes of a quiet run."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from pipeline.captioning.captioner_handler import CaptionerHandler
from pipeline.captioning.stage import Caption
from pipeline.config.captions import Decoding, Granularity
from pipeline.engine.caption_tables import CaptionTables
from pipeline.engine.run_folder import RunFolder
from tests.support import tiny_checkpoints
from tests.support.tiny_run import Row, bytes_of, encoded, make_run, run_stage

N_KILLS = 25
N_LOTS, N_IMAGES = 30, 5

# Children are forked from a process that has imported everything but started nothing.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.pipeline.captioning.test_kills"])


class LoggingHandler(CaptionerHandler):
    """Writes down every caption that the model is paid for, once it is made."""

    log = ""

    def run_inference(self, batch, model, inference_args=None):
        made = super().run_inference(batch, model, inference_args)
        names = [wanted.granularity.name for wanted in inference_args["targets"]]
        lines = [
            json.dumps([os.getpid(), name, rows[0].image_hash.hex()])
            for image in made
            for name, rows in zip(names, image, strict=True)
        ]
        with open(self.log, "a") as file:
            file.write("\n".join(lines) + "\n")
        return made


def caption(run: RunFolder, log: str) -> None:
    LoggingHandler.log = log
    run_stage(Caption(run, run.config.granularities, LoggingHandler), run.lots)


def started(run: RunFolder, log: Path) -> BaseProcess:
    process = PROCESSES.Process(target=caption, args=(run, str(log)))
    process.start()
    return process


def made_by(pid: int, log: Path) -> set[tuple[str, str]]:
    lines = log.read_text().splitlines() if log.exists() else []
    entries = [json.loads(line) for line in lines]
    return {(name, image) for found, name, image in entries if found == pid}


def stored(run: RunFolder) -> dict[tuple[str, str], str]:
    """Granularity and image of every caption in a table, with its lot."""
    return {
        (granularity.name, image_hash.hex()): lot.base
        for granularity in run.config.granularities
        for tables in [CaptionTables.open(run.captions(granularity))]
        for lot in run.lots
        for image_hash, _ in tables.keys(lot)
    }


def plain(color: np.ndarray) -> Row:
    return Row(encoded(color))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("kills")
    checkpoint = str(tiny_checkpoints.write_paligemma(folder / "checkpoint"))
    greedy = Granularity("short", checkpoint, "caption en", 4, batch_size=2)
    drawn = Granularity(
        "drawn",
        checkpoint,
        "describe en",
        max_new_tokens=4,
        decoding=Decoding(temperature=1.0, n_samples=2),
        batch_size=2,
    )
    colors = np.random.default_rng(0).integers(0, 256, (N_LOTS, N_IMAGES, 3))
    rows = {f"{i:03d}": [Row(encoded(c)) for c in lot] for i, lot in enumerate(colors)}
    return make_run(folder, rows, granularities=(greedy, drawn))


@pytest.mark.slow
def test_no_kill_changes_a_byte_or_costs_more_than_the_block_in_flight(
    run: RunFolder, tmp_path: Path
):
    log = tmp_path / "quiet"
    quiet = started(run, log)
    quiet.join()
    assert quiet.exitcode == 0
    undisturbed = bytes_of(run.root)
    image_to_lot = {image: lot for (_, image), lot in stored(run).items()}
    assert len(made_by(quiet.pid, log)) == 2 * N_LOTS * N_IMAGES
    shutil.rmtree(Path(run.root, "captions"))

    rng = np.random.default_rng(1)
    log = tmp_path / "killed"
    n_kills = n_kills_at_work = 0
    while n_kills < N_KILLS:
        before = stored(run)
        process = started(run, log)
        # One kill in five comes while the model is loaded.
        if rng.random() > 0.2:
            wait_for_captions(process, log)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        made, after = made_by(process.pid, log), stored(run)
        assert not made & before.keys()
        assert len({image_to_lot[image] for _, image in made - after.keys()}) <= 1
        n_kills += process.exitcode == -signal.SIGKILL
        n_kills_at_work += bool(made) and process.exitcode == -signal.SIGKILL
        if len(after) == 2 * N_LOTS * N_IMAGES:
            remove_half(run, rng)
    caption_rest = started(run, log)
    caption_rest.join()
    assert caption_rest.exitcode == 0
    assert n_kills_at_work >= 10
    assert bytes_of(run.root) == undisturbed


def wait_for_captions(process: BaseProcess, log: Path) -> None:
    while process.is_alive() and not made_by(process.pid, log):
        time.sleep(0.02)


def remove_half(run: RunFolder, rng: np.random.Generator) -> None:
    """So that there is work for more kills."""
    tables: Sequence[Path] = sorted(Path(run.root, "captions").rglob("*.parquet"))
    for table in rng.permutation(tables)[: len(tables) // 2]:
        table.unlink()
