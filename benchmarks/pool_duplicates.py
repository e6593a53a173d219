"""Measures near-duplicates of a pool: time, memory, and whether components are right.

Draws unit vectors around topics, 1 % of them in groups of two to eight near-duplicates,
and 1 % as one group of look-alikes, and finds the groups again. Each size runs in its
own process. Prints a line of JSON for each size.

    python -m benchmarks.pool_duplicates --rows 100000 1000000 10000000 --folder /tmp/v
    python -m benchmarks.pool_duplicates --rows 100000 1000000 --folder /tmp/v --select

The first command calls what the steps of `select` call, in one process, and tells of
each on standard error. Vectors lie in a file, and the shuffle is a sort of the numbers
of images, so that a pool fits that is larger than the memory of Beam's local runner.
The file stays, 5 GB for ten million rows, and is not drawn again. The second command
runs `select` itself, and then again with another threshold.
"""

import argparse
import contextlib
import functools
import json
import logging
import pathlib
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from benchmarks.select import in_process
from pipeline import curate, records
from pipeline.config.curation import CurationConfig, EncoderConfig, ImageTextSource
from pipeline.config.duplicates import ENCODER, Cells, PoolDuplicates, Resemblance
from pipeline.config.selection import SelectionConfig
from pipeline.engine.lot_plan import single
from pipeline.engine.run_folder import RunFolder
from pipeline.selection import ledger as ledgers
from pipeline.selection.duplicates import cell_splits, components
from pipeline.selection.duplicates.cell_entries import (
    Comparison,
    Splits,
    enter_cells,
    find_part_entries,
)
from pipeline.selection.duplicates.component_roots import partition
from pipeline.selection.duplicates.kmeans_cells import to_grid
from pipeline.selection.duplicates.members import (
    LINKED,
    image_numbers,
    members_dtype,
    split_by,
)
from pipeline.selection.duplicates.pool import FindComponents
from pipeline.selection.search.embeddings import normalize
from pipeline.sources.shards import Shard
from pipeline.storage.tables import to_table, to_vector_column

BOUND, OTHER_BOUND = 0.9, 0.92
N_TOPICS = 1000
N_SUBTOPICS = 100_000  # 100 of each topic
SHARE_GROUPED = 0.01
SHARE_LOOKALIKES = 0.01
ROWS_PER_BLOCK = 2**16
ROWS_PER_SHARD = 10**5
ENTRIES = np.dtype(
    [("part", np.int64), ("row", np.int32), ("is_visitor", bool), ("is_cut", bool)]
)


def draw_groups(n: int) -> np.ndarray:
    """The first row of the group of each row, int64 [n]: a row of its own for most."""
    rng = np.random.default_rng(n)
    group = np.arange(n)
    shuffled = rng.permutation(n)
    n_lookalikes, n_grouped = int(n * SHARE_LOOKALIKES), int(n * SHARE_GROUPED)
    group[shuffled[:n_lookalikes]] = shuffled[:n_lookalikes].min()
    start, end = n_lookalikes, n_lookalikes + n_grouped
    while start < end:
        size = int(rng.integers(2, 9))
        mine = shuffled[start : start + size]
        group[mine] = mine.min()
        start += size
    return group


def draw_vectors(
    group: np.ndarray, is_grouped: np.ndarray, rows: np.ndarray, dim: int
) -> np.ndarray:
    """Vectors of some rows, float16 [n, dim].

    Groups lie around topics and the subtopics of these: cosines of about 0.5 and 0.7.
    A row of a group is its first row and noise: their cosine is at least 0.93, so pairs
    of other rows may have less than the bound.
    """
    rng = np.random.default_rng((len(group), rows[0]))
    mine = group[rows]
    own = _lot(rng.random((len(rows), dim), np.float32) - np.float32(0.5))
    is_member = mine != rows
    for i in np.flatnonzero(is_grouped[rows]):
        found = np.random.default_rng(mine[i]).standard_normal(dim, np.float32)
        own[i] = found / np.linalg.norm(found)
    topics, subtopics = _draw_topics(dim)
    topic, subtopic = mine % N_TOPICS, mine % len(subtopics)
    own *= np.float32(0.7)
    own += topics[topic]
    own += subtopics[subtopic]
    vectors = _lot(own)
    noise = _lot(rng.standard_normal((is_member.sum(), dim), np.float32))
    vectors[is_member] += rng.uniform(0.05, 0.4, (is_member.sum(), 1)) * noise
    return vectors.astype(np.float16)


@functools.cache
def _draw_topics(dim: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    topics = _lot(rng.standard_normal((N_TOPICS, dim), np.float32))
    subtopics = _lot(rng.standard_normal((N_SUBTOPICS, dim), np.float32))
    return topics, np.float32(0.6) * subtopics


def _lot(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]


class Phases:
    """Seconds of phases, and the peak of memory that is no page of a file."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.processor: dict[str, float] = {}
        self.peak_gib = 0.0
        self.counts: dict[str, int] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            status = pathlib.Path("/proc/self/status").read_text()
            (line,) = (line for line in status.splitlines() if "RssAnon" in line)
            self.peak_gib = max(self.peak_gib, int(line.split()[1]) / 2**20)
            time.sleep(0.1)

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start, processor = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)
        self.processor[name] = round(time.process_time() - processor, 1)
        took = f"{self.seconds[name]} s, {self.processor[name]} s of the processor"
        print(f"{name}: {took}, {self.peak_gib:.2f} GiB so far", file=sys.stderr)

    def account(self) -> dict[str, object]:
        """What was measured, for a line of JSON."""
        names = [name for name in self.seconds if name != "draw"]
        return {
            "seconds": self.seconds,
            "processor": self.processor,
            "all_s": round(sum(self.seconds[name] for name in names), 1),
            "all_processor_s": round(sum(self.processor[name] for name in names), 1),
            "peak_gib": round(self.peak_gib, 2),
            **self.counts,
        }


class Pool:
    """A pool of vectors in a file."""

    def __init__(self, folder: pathlib.Path, n_rows: int, dim: int) -> None:
        self.group = draw_groups(n_rows)
        self._path = folder / f"{n_rows}x{dim}.f16"
        self._dim = dim

    def write(self) -> None:
        """Writes the file, unless an earlier process has."""
        if not self._path.exists():
            self._draw(self._path.with_suffix(".part"))
        self.vectors = np.memmap(self._path, np.float16, "r").reshape(-1, self._dim)

    def _draw(self, part: pathlib.Path) -> None:
        is_grouped = (np.bincount(self.group) > 1)[self.group]
        with part.open("wb") as file:
            for start in range(0, len(self.group), ROWS_PER_BLOCK):
                rows = np.arange(start, min(start + ROWS_PER_BLOCK, len(self.group)))
                vectors = draw_vectors(self.group, is_grouped, rows, self._dim)
                file.write(vectors.tobytes())
        part.replace(self._path)

    def members(self, rows: np.ndarray) -> np.ndarray:
        """Images of some rows."""
        found = np.zeros(len(rows), members_dtype(self._dim))
        found["image"] = image_numbers(0, rows)
        found["sample_id"] = cell_splits.mix(rows)[:, None]
        found["embedding"] = self.vectors[rows]
        return found

    def blocks(self, share: float = 1) -> Iterator[np.ndarray]:
        """All images, or a share of them."""
        n = len(self.group)
        for start in range(0, n, ROWS_PER_BLOCK):
            rows = np.arange(start, min(start + ROWS_PER_BLOCK, n))
            is_drawn = cell_splits.mix(rows) <= np.uint64(share * (2**64 - 2**12))
            yield self.members(rows[is_drawn])


def find_components(pool: Pool, phases: Phases) -> np.ndarray:
    """The first row of the component of each row, int64 [n]."""
    n, dim = pool.vectors.shape
    by = Resemblance(ENCODER, BOUND)
    comparison = Comparison(describe_run("", n, BOUND), Cells(), by, of_anchors=False)
    plan = comparison.plan(n, dim)
    with phases.measure("train"):
        n_training = comparison.cells.n_training * comparison.cells.n_clusters
        sample = np.concatenate(list(pool.blocks(min(1, n_training / n))))
        grid = to_grid(normalize(sample["embedding"])[0])
        centroids = cell_splits.train(grid, comparison.cells.n_clusters, plan)
    with phases.measure("split"):
        entered = [
            (key >> 40, mine)
            for block in pool.blocks(1 / plan.scale)
            for key, mine in enter_cells(block, centroids, Splits({}), comparison)
        ]
        cells = np.repeat([key for key, _ in entered], [len(e) for _, e in entered])
        samples = np.concatenate([mine for _, mine in entered])
        found = {
            cell: cell_splits.split_cell(mine, plan)
            for cell, mine in split_by(cells, samples)
        }
        del entered, samples
        splits = Splits({cell: split for cell, split in found.items() if split})
    with phases.measure("enter"):
        found_entries = []
        for block in pool.blocks():
            own = find_part_entries(block, centroids, splits, comparison)
            mine = np.empty(len(own), ENTRIES)
            mine["row"] = block["image"][own[:, 1]]
            mine["part"], mine["is_visitor"], mine["is_cut"] = own[:, [0, 2, 3]].T
            found_entries.append(mine)
        entries = np.concatenate(found_entries)
        del found_entries
    return compare(pool, entries, phases)


def compare(pool: Pool, entries: np.ndarray, phases: Phases) -> np.ndarray:
    """Compares within parts, given the entries of these."""
    with phases.measure("sort"):
        entries = entries[np.argsort(entries["part"], kind="stable")]
        part = entries["part"]
        ends = np.append(np.flatnonzero(np.diff(part)) + 1, len(part))
    phases.counts = {
        "entries": len(part),
        "parts": len(ends),
        "largest": int(np.diff(ends, prepend=0).max()),
    }
    with phases.measure("compare"):
        linked, start = [np.empty(0, LINKED)], 0
        for end in ends.tolist():
            members = pool.members(entries["row"][start:end].astype(np.int64))
            for name in ("is_visitor", "is_cut"):
                members[name] = entries[name][start:end]
            linked.append(components.find_links([members], 0, BOUND))
            start = end
    with phases.measure("merge"):
        root = np.arange(len(pool.group))
        for found in merge(np.concatenate(linked)):
            found = np.sort(found, order="image")
            _, first, place = np.unique(
                found["root"], return_index=True, return_inverse=True
            )
            root[found["image"]] = found["image"][first[place]]
    return root


def merge(linked: np.ndarray) -> list[np.ndarray]:
    """Whole components, by the transform of `select`, on Beam's local runner."""
    blocks = list(split_by(partition(linked["image"]), linked))
    with tempfile.TemporaryDirectory() as folder:
        with beam.Pipeline(FnApiRunner()) as pipeline:
            _ = (
                pipeline
                | beam.Create(blocks)
                | FindComponents()
                | beam.Map(lambda block: np.save(f"{folder}/{block['root'][0]}", block))
            )
        return [np.load(path) for path in pathlib.Path(folder).iterdir()]


def measure_steps(folder: pathlib.Path, n_rows: int, dim: int) -> None:
    """Prints what the steps take, and whether components are the groups drawn."""
    logging.disable(logging.WARNING)
    phases = Phases()
    pool = Pool(folder, n_rows, dim)
    with phases.measure("draw"):
        pool.write()
    phases.peak_gib = 0
    root = find_components(pool, phases)
    account = {
        "rows": n_rows,
        **phases.account(),
        "wrong_rows": int(np.sum(root != pool.group)),
    }
    print(json.dumps(account), flush=True)


def describe_run(root: str, n_rows: int, bound: float) -> RunFolder:
    """A run of so many pairs; `write_tables` writes its tables."""
    source = ImageTextSource("web", "web/*")
    duplicates = PoolDuplicates((Resemblance(ENCODER, bound),))
    selection = SelectionConfig(drop_exact_duplicates=False, pool_duplicates=duplicates)
    config = CurationConfig(
        encoder=EncoderConfig("none"), selection=selection, sources=(source,)
    )
    starts = range(0, n_rows, ROWS_PER_SHARD)
    lots = tuple(single(Shard(source, f"web/{start:09d}")) for start in starts)
    return RunFolder(root, config, lots, (), (), {"none": "none"})


def write_tables(run: RunFolder, pool: Pool) -> None:
    """Writes the tables that `score` would write."""
    for i, lot in enumerate(run.lots):
        rows = np.arange(i * ROWS_PER_SHARD, (i + 1) * ROWS_PER_SHARD)
        rows = rows[rows < len(pool.group)]
        pairs = [_pair(records.content_hash(str(row).encode())) for row in rows]
        run.pairs(lot.source).write(lot.name, to_table(pairs, records.Pair))
        embedding = to_vector_column(pool.vectors[rows])
        table = {"embedding": embedding, "alignment_score": np.zeros(len(rows))}
        run.embeddings(lot.source).write(lot.name, pa.table(table))


def _pair(sample_id: bytes) -> records.Pair:
    texts, numbers = ("", "", ""), (512, 512, 1, 0)
    return records.Pair(sample_id, *texts, sample_id, "jpeg", *numbers, error="")


def measure_select(folder: pathlib.Path, n_rows: int, dim: int) -> None:
    """Prints what `select` takes, and what it drops, with two thresholds."""
    logging.disable(logging.WARNING)
    phases = Phases()
    pool = Pool(folder, n_rows, dim)
    with tempfile.TemporaryDirectory(dir=folder) as root, phases.measure("draw"):
        pool.write()
        write_tables(describe_run(root, n_rows, BOUND), pool)
        phases.peak_gib = 0
        found: dict[str, object] = {"rows": n_rows}
        for name, bound in (("select", BOUND), ("changed_threshold", OTHER_BOUND)):
            with phases.measure(name):
                curate.select(describe_run(root, n_rows, bound), PipelineOptions([]))
            ledger = ledgers.restore_ledger(describe_run(root, n_rows, bound))
            found[f"{name}_dropped"] = ledger["dropped"]["near_duplicate"]
    print(json.dumps(found | phases.account()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--select", action="store_true")
    flags = parser.parse_args()
    for n_rows in flags.rows:
        measure = measure_select if flags.select else measure_steps
        in_process(measure, flags.folder, n_rows, flags.dim)


if __name__ == "__main__":
    main()
