"""Measures what `select` costs, and how the cost grows with the pool.

Draws score tables and runs `select` on them (English, best-aligned half, exact
duplicates, near evaluation images, near seeds), then again with another similarity
threshold. Each size runs in its own process, whose peak memory counts. Prints a line of
JSON for each size.

    python -m benchmarks.select --rows 10000 100000 1000000
"""

import argparse
import dataclasses
import json
import logging
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import curate, records
from pipeline.config.curation import CurationConfig, EncoderConfig, ImageTextSource
from pipeline.config.selection import (
    KeepFraction,
    KeepLanguages,
    NearSeeds,
    SelectionConfig,
)
from pipeline.engine.lot_plan import single
from pipeline.engine.run_folder import RunFolder
from pipeline.selection import ledger as ledgers
from pipeline.sources.shards import Lot, Shard
from pipeline.storage.tables import to_table

_ROWS_PER_SHARD = 10_000  # as img2dataset
_SHARE_ENGLISH = 0.5
_SHARE_REPEATED = 0.05  # of images, each in the same shard or another
_N_DIRECTIONS = 1000  # that images and sets lie around, so that some are near


def describe_run(root: str, n_rows: int) -> RunFolder:
    """Returns a run of so many pairs; `write_tables` writes its tables."""
    kinds = ("web", "evaluation", "seeds")
    sources = {name: ImageTextSource(name, f"{name}/*") for name in kinds}
    selected = SelectionConfig(
        language=KeepLanguages(),
        alignment=KeepFraction(0.5),
        max_evaluation_similarity=0.8,
        retrieval=NearSeeds(0.6),
    )
    config = CurationConfig(
        encoder=EncoderConfig("none"),
        selection=selected,
        sources=(sources["web"],),
        evaluation_sets=(sources["evaluation"],),
        seed_sets=(sources["seeds"],),
    )
    starts = range(0, n_rows, _ROWS_PER_SHARD)
    lots = tuple(single(Shard(sources["web"], f"web/{start:09d}")) for start in starts)
    evaluation, seeds = (
        (single(Shard(sources[name], f"{name}/0")),) for name in kinds[1:]
    )
    return RunFolder(root, config, lots, evaluation, seeds, {"none": "none"})


def write_tables(root: str, n_rows: int, n_references: int, dim: int) -> None:
    """Writes the tables that `score` would write."""
    run = describe_run(root, n_rows)
    for i, lot in enumerate(run.lots):
        first = i * _ROWS_PER_SHARD
        _write_lot(run, lot, first, min(_ROWS_PER_SHARD, n_rows - first), dim)
    for i, lot in enumerate((*run.evaluation_lots, *run.seed_lots), start=1):
        _write_lot(run, lot, 10**12 * i, n_references, dim)


def _write_lot(run: RunFolder, lot: Lot, first: int, n: int, dim: int) -> None:
    rng = np.random.default_rng(first)
    numbers = first + np.arange(n)
    images = np.where(rng.random(n) < _SHARE_REPEATED, numbers // 2, numbers)
    pairs = [
        records.Pair(
            sample_id=_hash(number),
            key=str(number),
            url=f"https://host{number % 997}.example/{number}.jpg",
            alt_text=f"a photo of thing {number} beside another thing",
            image_hash=_hash(-1 - image),
            image_format="jpeg",
            width=512,
            height=512,
            n_bytes=1,
            offset=0,
            error="",
        )
        for number, image in zip(numbers.tolist(), images.tolist(), strict=True)
    ]
    run.pairs(lot.source).write(lot.name, to_table(pairs, records.Pair))
    is_english = rng.random(n) < _SHARE_ENGLISH
    languages = {
        "code": np.where(is_english, "en", "de").astype(object),
        "probability": rng.random(n),
    }
    run.languages(lot.source).write(lot.name, pa.table(languages))
    embedding = pa.FixedSizeListArray.from_arrays(_draw(rng, n, dim).ravel(), dim)
    scores = rng.normal(0.2, 0.1, n).astype(np.float32)
    table = pa.table({"embedding": embedding, "alignment_score": scores})
    run.embeddings(lot.source).write(lot.name, table)


def _draw(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    """Draws float16 vectors around common directions, at very different distances."""
    directions = np.random.default_rng(0).standard_normal(
        (_N_DIRECTIONS, dim), dtype=np.float32
    )
    noise = rng.standard_normal((n, dim), dtype=np.float32)
    noise *= rng.uniform(0.2, 3, (n, 1)).astype(np.float32)
    return (directions[rng.integers(_N_DIRECTIONS, size=n)] + noise).astype(np.float16)


def _hash(number: int) -> bytes:
    return records.content_hash(str(number).encode())


def measure(root: str, n_rows: int, arguments: list[str]) -> None:
    """Prints seconds, kept pairs and, in GiB, the peak memory of both runs."""
    logging.disable(logging.WARNING)
    run = describe_run(root, n_rows)
    changed = dataclasses.replace(run.config.selection, max_evaluation_similarity=0.75)
    again = dataclasses.replace(
        run, config=dataclasses.replace(run.config, selection=changed)
    )
    found: dict[str, object] = {"rows": n_rows}
    for name, each in (("select", run), ("changed_threshold", again)):
        start, processor = time.perf_counter(), time.process_time()
        curate.select(each, PipelineOptions(arguments))
        found[f"{name}_s"] = round(time.perf_counter() - start, 1)
        found[f"{name}_processor_s"] = round(time.process_time() - processor, 1)
        found[f"{name}_kept"] = ledgers.restore_ledger(each)["kept"]
    peak_kib = sum(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(json.dumps(found | {"peak_gib": round(peak_kib / 2**20, 2)}), flush=True)


def in_process(function: Callable, *arguments: object) -> None:
    """Runs a function in a fresh process, so that memory is measured alone."""
    process = multiprocessing.get_context("spawn").Process(
        target=function, args=arguments
    )
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--references", type=int, default=10_000, help="of each set")
    parser.add_argument("--dim", type=int, default=512)
    flags, beam_arguments = parser.parse_known_args()
    for n_rows in flags.rows:
        with tempfile.TemporaryDirectory() as root:
            in_process(write_tables, root, n_rows, flags.references, flags.dim)
            in_process(measure, root, n_rows, beam_arguments)


if __name__ == "__main__":
    main()
