"""Measures what a takedown and one more shard rewrite in a large export.

    python -m benchmarks.takedown [--shards 2000] [--pairs 117] [--scratch DIR]

Draws no web and runs no model on the first shards: each holds the same small JPEG with
a number of its own, and their scores are written by hand. The commands `select`,
`export`, `remove --pairs` of one pair, and `score`, `select` and `export` after one
more shard are those of a user. Prints what each took, which lots' training shards it
wrote or removed, and ends with an error if there is one lot too many.
"""

import argparse
import dataclasses
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import simplejpeg

from pipeline import records
from pipeline.engine.run_folder import RunFolder
from pipeline.export.receipts import base_of
from pipeline.run import open_run
from pipeline.scoring.shard_work import PLACES_KEY, write_places
from pipeline.sources.shards import Lot
from pipeline.storage.tables import schema_of, to_vector_column
from tests.support import tiny_checkpoints

SHARDS_PER_LOT, SAMPLES_PER_SHARD = 100, 1_000
SIDE_PX = 16
_MARK = b"%012d"  # what tells one image from another

_RECIPE = """
from pipeline.config import curation
from pipeline.config.selection import SelectionConfig

def get_config():
    return curation.CurationConfig(
        encoder=curation.EncoderConfig({encoder!r}, batch_size=64),
        selection=SelectionConfig(),
        sources=(curation.ImageTextSource("web", {glob!r}, needs_alt_text=False),),
        export=curation.ExportConfig(samples_per_shard={samples_per_shard}),
        shards_per_lot={shards_per_lot},
    )
"""

Stamps = dict[str, tuple[int, int]]  # name to inode and time of a file


def _image(number: int) -> bytes:
    """A JPEG with a number in a comment."""
    data = _PLAIN
    comment = _MARK % number
    length = (len(comment) + 2).to_bytes(2, "big")
    return data[:2] + b"\xff\xfe" + length + comment + data[2:]


_PLAIN = simplejpeg.encode_jpeg(
    np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8), 30
)


@dataclasses.dataclass(frozen=True)
class Web:
    """Shards `crawl/000000.tar` and so on; pair `i` of shard `s` is number `s * n + i`.

    Attributes:
      n_pairs: of each shard.
    """

    folder: Path
    n_pairs: int

    @property
    def glob(self) -> str:
        return str(self.folder / "crawl" / "*.tar")

    def write(self, shards: Sequence[int]) -> None:
        """Writes some shards, which differ in the numbers of their images alone."""
        (self.folder / "crawl").mkdir(parents=True, exist_ok=True)
        template, offsets = self._template()
        places = [offset + _image(0).index(_MARK % 0) for offset in offsets]
        for shard in shards:
            data = bytearray(template)
            for row, place in enumerate(places):
                number = _MARK % (shard * self.n_pairs + row)
                data[place : place + len(number)] = number
            (self.folder / "crawl" / f"{shard:06d}.tar").write_bytes(data)

    def _template(self) -> tuple[bytes, list[int]]:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for row in range(self.n_pairs):
                member = tarfile.TarInfo(f"{row:05d}.jpg")
                member.size = len(_image(0))
                tar.addfile(member, io.BytesIO(_image(0)))
        file.seek(0)
        with tarfile.open(fileobj=file) as tar:
            return file.getvalue(), [member.offset_data for member in tar]

    def pairs(self, lot: Lot) -> pa.Table:
        """The rows of a lot's table of pairs, as `score` would write them."""
        offsets = self._template()[1]
        rows = [
            (shard, row, int(Path(one.uri).stem) * self.n_pairs + row)
            for shard, one in enumerate(lot.shards)
            for row in range(self.n_pairs)
        ]
        images = [_image(number) for _, _, number in rows]
        n, schema = len(rows), schema_of(records.Pair)
        columns = {
            "sample_id": [records.sample_id(image, b"") for image in images],
            "key": [f"{row:05d}" for _, row, _ in rows],
            "image_hash": [records.content_hash(image) for image in images],
            "image_format": ["jpeg"] * n,
            "width": [SIDE_PX] * n,
            "height": [SIDE_PX] * n,
            "n_bytes": [len(image) for image in images],
            "offset": [offsets[row] for _, row, _ in rows],
            "shard": [shard for shard, _, _ in rows],
        }
        empty = {pa.string(): "", pa.int64(): 0}
        arrays = [
            pa.array(columns.get(f.name, [empty.get(f.type)] * n), f.type)
            for f in schema
        ]
        metadata = {PLACES_KEY: write_places(lot.shards)}
        return pa.table(arrays, schema=schema.with_metadata(metadata))


class Run:
    """The run over a web, and the commands that change it."""

    def __init__(self, web: Web) -> None:
        self._web = web
        self.output = web.folder / "run"
        self._recipe = web.folder / "recipe.py"
        encoder = tiny_checkpoints.write_siglip(web.folder / "encoder")
        text = _RECIPE.format(
            encoder=str(encoder),
            glob=web.glob,
            samples_per_shard=SAMPLES_PER_SHARD,
            shards_per_lot=SHARDS_PER_LOT,
        )
        self._recipe.write_text(text)

    def _words(self, command: str, *more: str) -> list[str]:
        flags = ("--config", str(self._recipe), "--output", str(self.output))
        return [command, *flags, *more]

    def write_scores(self) -> int:
        """Writes what `score` would; returns the number of lots."""
        run = open_run(self._words("score"))
        for lot in run.lots:
            _write_scores(run, lot, self._web.pairs(lot))
        return len(run.lots)

    def measure(self, what: str, n_lots: int, command: str, *more: str) -> None:
        """Runs a command; prints a line of what it took and whose shards it changed.

        Ends the program if they are not of `n_lots` lots.
        """
        before, start_s = self._stamps(), time.monotonic()
        words = [sys.executable, "-m", "pipeline.run", *self._words(command, *more)]
        with (self.output.parent / f"{command}.log").open("w") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log)
            _, code, used = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - start_s
        changed = _changed(before, self._stamps())
        bases = sorted(filter(None, map(base_of, changed)))
        lots = sorted(set(bases))
        print(
            f"| {what} | {wall_s:.1f} | {used.ru_utime + used.ru_stime:.1f} |"
            f" {used.ru_maxrss / 1024:,.0f} | {len(bases):,} of"
            f" {len(before.keys() | changed):,} | {len(lots):,} |",
            flush=True,
        )
        if code:
            raise SystemExit((self.output.parent / f"{command}.log").read_text())
        if len(lots) != n_lots:
            raise SystemExit(f"{what}: expected {n_lots} lots, found {lots}")

    def _stamps(self) -> Stamps:
        """The training shards; one that is written again gets another inode."""
        return _stamps(self.output / "tfrecords", "*.tfrecord")

    def a_kept_pair(self) -> str:
        """An entry of a list of pairs that names one in the middle of the run."""
        run = open_run(self._words("export"))
        lot = run.lots[len(run.lots) // 2]
        rows = run.pairs(lot.source).read(lot.name, ["sample_id"])["sample_id"]
        return f"sample_id:{rows[len(rows) // 2].as_py().hex()}"


def _write_scores(run: RunFolder, lot: Lot, pairs: pa.Table) -> None:
    source, n = lot.source, pairs.num_rows
    facts = {"source": source.name, "unreadable": 0, "environments": []}
    vectors = np.ones((n, tiny_checkpoints.VISION["hidden_size"]), np.float16)
    embeddings = {
        "embedding": to_vector_column(vectors),
        "alignment_score": pa.array(np.full(n, 0.5, np.float32)),
    }
    languages = {"code": ["en"] * n, "probability": np.ones(n)}
    schema = schema_of(records.Language)
    run.embeddings(source).write(lot.name, pa.table(embeddings), facts)
    run.languages(source).write(lot.name, pa.table(languages, schema=schema), facts)
    run.pairs(source).write(lot.name, pairs, facts)


def _stamps(folder: Path, pattern: str) -> Stamps:
    found = ((path.name, path.stat()) for path in folder.glob(pattern))
    return {name: (facts.st_ino, facts.st_mtime_ns) for name, facts in found}


def _changed(before: Stamps, after: Stamps) -> set[str]:
    """Names of files that are new, gone or written again."""
    names = before.keys() | after.keys()
    return {name for name in names if before.get(name) != after.get(name)}


def measure(folder: Path, n_shards: int, n_pairs: int) -> None:
    """Makes the run, takes a pair down and adds a shard; prints a line on each."""
    web = Web(folder, n_pairs)
    start_s = time.monotonic()
    web.write(range(n_shards))
    run = Run(web)
    n_lots = run.write_scores()
    made_s = time.monotonic() - start_s
    n = n_shards * n_pairs
    print(f"{n:,} pairs in {n_lots:,} lots, written in {made_s:.0f} s\n", flush=True)
    print("| | wall s | CPU s | peak MiB | training shards changed | of lots |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    run.measure("`select`", 0, "select")
    run.measure("`export`", n_lots, "export")
    entries = folder / "pairs.txt"
    entries.write_text(f"{run.a_kept_pair()}\n")
    run.measure("`remove --pairs` of one", 1, "remove", "--pairs", str(entries))
    web.write([n_shards])
    for stage in ("score", "select", "export"):
        n_new = int(stage == "export")
        run.measure(f"one more shard: `{stage}`", n_new, stage)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=2_000)
    parser.add_argument("--pairs", type=int, default=117, help="of each shard")
    parser.add_argument("--scratch", help="an empty folder on a disk with room")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="takedown-", dir=args.scratch) as folder:
        measure(Path(folder), args.shards, args.pairs)


if __name__ == "__main__":
    main()
