"""A takedown writes the tables of the lots that it concerns, and of no others."""

import json
import re
from pathlib import Path

import pytest

from pipeline import records, run
from tests.support import small_run, tiny_checkpoints
from tests.support.tiny_run import Row, write_shard

N_LOTS = 200
CHOSEN = 77


def arguments(command: str, web: Path, *more: str) -> list[str]:
    return [
        *(command, "--config", str(web / "recipe.py"), "--output", str(web / "run")),
        *("--input", str(web / "crawl" / "*.tar"), "--set", "shards_per_lot=1"),
        *("--set", "granularities=()"),
        *("--set", "selection.max_evaluation_similarity=null", *more),
    ]


def marks(folder: Path) -> dict[str, tuple[int, int]]:
    """Path to what changes when a file is written, even with the same bytes."""
    found = {}
    for path in folder.rglob("*"):
        status = path.stat()
        if not path.is_dir():
            found[str(path.relative_to(folder))] = (status.st_mtime_ns, status.st_ino)
    return found


def base_of(path: str) -> str:
    """The base name of the lot that a file is of; "" of a file of the run."""
    found = re.search(r"web-\d{5}", path)
    return found[0] if found else ""


@pytest.mark.slow
def test_of_many_lots_the_tables_and_shards_of_one_are_written_again(tmp_path):
    small_run.write(tmp_path)
    for path in (tmp_path / "crawl").iterdir():
        path.unlink()
    images = tiny_checkpoints.random_images(2 * N_LOTS)
    pairs = [
        Row(small_run._png(image), f"a text on image {i}")
        for i, image in enumerate(images)
    ]
    for number in range(N_LOTS):
        two = pairs[2 * number : 2 * number + 2]
        write_shard(tmp_path / "crawl" / f"{number:03d}.tar", two)
    run.main(arguments("curate", tmp_path))
    before = marks(tmp_path / "run")
    row = pairs[2 * CHOSEN]
    sample_id = records.sample_id(row.image, row.alt_text.encode()).hex()
    (tmp_path / "owners.txt").write_text(f"sample_id:{sample_id}\n")
    run.main(arguments("remove", tmp_path, "--pairs", str(tmp_path / "owners.txt")))
    after = marks(tmp_path / "run")
    written = {path for path, mark in after.items() if before.get(path) != mark}
    removed = {path for path in before if path not in after}
    of_lots = {base_of(path) for path in written | removed if "report/" not in path}
    assert of_lots - {""} == {f"web-{CHOSEN:05d}"}
    manifest = json.loads((tmp_path / "run/tfrecords/manifest.json").read_text())
    assert manifest["n_samples"] == 2 * N_LOTS - 1
