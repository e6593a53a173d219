"""Measures time, memory and size of the report of a million pairs.

    python -m benchmarks.report --output FOLDER [--n-pairs 1000000]

Writes tables as `score` and `select` would, with random scores and without images, and
builds the page from them.
"""

import argparse
import json
import pathlib
import resource
import time

import numpy as np
import pyarrow as pa

from pipeline import records
from pipeline.config.curation import CurationConfig, EncoderConfig, ImageTextSource
from pipeline.config.selection import (
    KeepLanguages,
    MinScore,
    NearSeeds,
    SelectionConfig,
)
from pipeline.engine.lot_plan import single
from pipeline.engine.run_folder import RunFolder
from pipeline.report import page
from pipeline.selection.lot_decisions import OUTCOMES, LotDecisions, outcome_counts
from pipeline.selection.rules import FewWords, SmallImage
from pipeline.sources.shards import Lot, Shard
from pipeline.storage import files
from pipeline.storage.tables import schema_of

PAIRS_PER_SHARD = 10_000  # img2dataset's
DIM = 1152  # of SigLIP so400m
N_REFERENCES = 5_000  # evaluation images, and as many seeds
LANGUAGES = ("en", "de", "fr", "ja", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--n-pairs", type=int, default=1_000_000)
    arguments = parser.parse_args()
    run, ledger = synthetic_run(str(arguments.output), arguments.n_pairs)
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    path = page.write(run, ledger)
    elapsed_s = time.monotonic() - start_s
    cpu_s = time.process_time() - start_cpu_s
    n_bytes = sum(files.sizes(path).values())
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(
        f"{arguments.n_pairs:,} pairs: {elapsed_s:.1f} s, {cpu_s:.1f} s of CPU,"
        f" {peak_mb:,.0f} MB of memory at most, page of {n_bytes / 1e6:.1f} MB"
    )


def synthetic_run(root: str, n_pairs: int) -> tuple[RunFolder, dict]:
    """Writes a run with its ledger and all tables of the report but captions."""
    names = ("web", "evaluation", "seeds")
    web, evaluation, seeds = (ImageTextSource(n, f"/no/{n}/*.tar") for n in names)
    config = CurationConfig(
        encoder=EncoderConfig("none"),
        selection=SelectionConfig(
            drop_rules=(FewWords(2), SmallImage(64)),
            language=KeepLanguages(min_foreign_probability=0.5),
            alignment=MinScore(0.1),
            max_evaluation_similarity=0.95,
            retrieval=NearSeeds(0.01),
        ),
        sources=(web,),
        evaluation_sets=(evaluation,),
        seed_sets=(seeds,),
    )
    n_shards = -(-n_pairs // PAIRS_PER_SHARD)
    shards = tuple(single(Shard(web, f"/no/web/{i:05d}.tar")) for i in range(n_shards))
    sets = [single(Shard(one, f"/no/{one.name}/0.tar")) for one in (evaluation, seeds)]
    run = RunFolder(root, config, shards, (sets[0],), (sets[1],), {"none": "none"})
    for number, lot in enumerate(sets):
        _write_scores(run, lot, np.random.default_rng(number), N_REFERENCES)
    counts = np.zeros(len(OUTCOMES), np.int64)
    for number, lot in enumerate(shards):
        n = min(PAIRS_PER_SHARD, n_pairs - number * PAIRS_PER_SHARD)
        counts += _write_shard(run, lot, np.random.default_rng(10 + number), n)
    return run, _ledger(counts)


def _ledger(counts: np.ndarray) -> dict:
    found = dict(zip(map(str, OUTCOMES), counts.tolist(), strict=True))
    total = {
        "read": sum(found.values()),
        "kept": found.pop(records.KEPT),
        "unreadable": found.pop(records.UNREADABLE),
        "dropped": found,
    }
    return json.loads(json.dumps(total))


def _write_shard(
    run: RunFolder, lot: Lot, chance: np.random.Generator, n: int
) -> np.ndarray:
    """Writes the tables of one shard that the report reads, unless they exist."""
    if not files.is_file(run.decisions.path(lot.name)):
        _write_scores(run, lot, chance, n)
        _write_decisions(run, lot, chance, n)
    return outcome_counts(run.decisions.read(lot.name, ["outcome"]))


def _write_scores(
    run: RunFolder, lot: Lot, chance: np.random.Generator, n: int
) -> None:
    ids = [chance.bytes(16) for _ in range(n)]
    words = chance.choice(["red", "circle", "on", "a", "field", "of", "wheat"], (n, 8))
    texts = [" ".join(row[: 1 + i % 8]) for i, row in enumerate(words.tolist())]
    sides = chance.integers(32, 512, (n, 2))
    pairs = {
        "sample_id": ids,
        "key": [f"{i:09d}" for i in range(n)],
        "url": [f"https://example.org/{i}" for i in range(n)],
        "alt_text": texts,
        "image_hash": ids,
        "image_format": ["jpeg"] * n,
        "width": sides[:, 0],
        "height": sides[:, 1],
        "n_bytes": sides[:, 0],
        "offset": np.arange(n),
        "error": [""] * n,
        "robots": [""] * n,
    }
    schema = schema_of(records.Pair)
    run.pairs(lot.source).write(lot.name, pa.table(pairs, schema=schema))
    languages = {"code": chance.choice(LANGUAGES, n), "probability": chance.random(n)}
    schema = schema_of(records.Language)
    run.languages(lot.source).write(lot.name, pa.table(languages, schema=schema))
    vectors = chance.standard_normal((n, DIM), np.float32).astype(np.float16)
    flat = pa.array(vectors.ravel())
    embedding = pa.FixedSizeListArray.from_arrays(flat, DIM)
    scores = pa.array(chance.random(n, np.float32))
    table = pa.table({"embedding": embedding, "alignment_score": scores})
    run.embeddings(lot.source).write(lot.name, table)


def _write_decisions(
    run: RunFolder, lot: Lot, chance: np.random.Generator, n: int
) -> None:
    """Writes random outcomes, since their cause does not affect the time."""
    decisions = LotDecisions(
        lot=lot,
        outcome=chance.integers(0, len(OUTCOMES), n).astype(np.int8),
        value=chance.random(n),
        threshold=np.full(n, 0.5),
        detail=np.full(n, "detail", dtype=object),
        seeds=np.fromiter((() for _ in range(n)), dtype=object, count=n),
    )
    ids = run.pairs(lot.source).read(lot.name, ["sample_id"])["sample_id"]
    run.decisions.write(lot.name, decisions.to_table(ids))


if __name__ == "__main__":
    main()
