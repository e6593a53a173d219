"""A sample of the pool's embeddings in files, drawn once for all rounds of k-means.

In: decisions on pairs. Out: blocks of embeddings in the folder of a training, named by
what is in them. Beside them lies an account of each lot's blocks, so a training that
was killed reads no lot twice.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa

from pipeline.config.duplicates import Cells
from pipeline.config.selection import SeededClusters
from pipeline.engine.run_folder import RunFolder
from pipeline.selection.hashed_random import unit_hashes
from pipeline.selection.lot_decisions import LotDecisions, read_rows
from pipeline.selection.search.centroid_files import Progress, TrainingFiles
from pipeline.selection.search.embeddings import normalize, read_blocks
from pipeline.storage import files
from pipeline.storage.tables import LotTables, from_vector_column, to_vector_column

Training = SeededClusters | Cells  # how many centroids to train, and how

ROWS_PER_BLOCK = 8192  # at least, but for the last: 12 MB at 768 dimensions
_N_SPARE_PROPOSALS = 50  # fewer than wanted: once in 10^18 pools


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Some images of the sample."""

    first_hash: np.ndarray  # float64 [n], of a proposed first centroid, else NaN
    is_training: np.ndarray  # bool [n]; the others are only proposed
    embedding: np.ndarray  # [n, d], as `score` stored it

    @property
    def digest(self) -> str:
        """Names the contents, 32 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.first_hash, self.is_training, self.embedding):
            digest.update(array.tobytes())
        return digest.hexdigest()


class WriteSample(beam.DoFn):
    """Writes the sample of one lot; yields the names of its blocks for `read`."""

    def __init__(
        self, run: RunFolder, training: Training, training_files: TrainingFiles
    ) -> None:
        self._run = run
        self._training = training
        self._folder = training_files.working_folder

    def process(
        self, decisions: LotDecisions, n_pool: int, progress: Progress
    ) -> Iterator[str]:
        if progress.is_trained:
            return
        name = f"{decisions.lot.name}.json"
        account = files.join(self._folder, "sampled", name)
        if not files.is_file(account):
            blocks = draw(decisions, self._run, self._training, n_pool)
            names = [write(block, self._folder) for block in blocks]
            files.write(account, json.dumps(names).encode())
        yield from json.loads(files.read(account))


def draw(
    decisions: LotDecisions, run: RunFolder, training: Training, n_pool: int
) -> Iterator[Block]:
    """Draws from the droppable pairs of a lot that have an embedding, by sample id.

    Of the whole pool these are about `n_training` images for each centroid, and more
    proposals than twice the centroids.
    """
    rows = decisions.droppable_rows
    ids = read_rows(run.pairs(decisions.lot.source), decisions, rows, "sample_id")
    sample_ids = ids["sample_id"].to_pylist()
    first_hash = unit_hashes(sample_ids, f"centroid {training.rng_seed}")
    training_hash = unit_hashes(sample_ids, f"training {training.rng_seed}")
    n_proposals = 2 * training.n_clusters + _N_SPARE_PROPOSALS
    is_proposed = first_hash < n_proposals / max(n_pool, 1)
    n_training = training.n_training * training.n_clusters
    is_training = training_hash < n_training / max(n_pool, 1)
    first_hash[~is_proposed] = np.nan
    drawn = np.flatnonzero(is_proposed | is_training)
    found: list[Block] = []
    for place, embeddings in read_blocks(run, decisions, rows[drawn]):
        _, has_direction = normalize(embeddings)
        mine = drawn[place[has_direction]]
        embedding = embeddings[has_direction]
        found.append(Block(first_hash[mine], is_training[mine], embedding))
        if sum(len(block.embedding) for block in found) >= ROWS_PER_BLOCK:
            yield _join(found)
            found = []
    if any(len(block.embedding) for block in found):
        yield _join(found)


def _join(blocks: list[Block]) -> Block:
    columns = zip(*map(_columns, blocks), strict=True)
    return Block(*map(np.concatenate, columns))


def _columns(block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return block.first_hash, block.is_training, block.embedding


def write(block: Block, folder: str) -> str:
    """Writes a block unless it is there; returns its name."""
    tables, name = LotTables(folder), f"sample-{block.digest}"
    if not files.is_file(tables.path(name)):
        columns = {
            "first_hash": pa.array(block.first_hash),
            "is_training": pa.array(block.is_training),
            "embedding": to_vector_column(block.embedding),
        }
        tables.write(name, pa.table(columns))
    return name


def read(folder: str, name: str) -> Block:
    """Reads a block that `write` has written."""
    table = LotTables(folder).read(name)
    return Block(
        table["first_hash"].to_numpy(),
        table["is_training"].to_numpy(),
        from_vector_column(table["embedding"].combine_chunks()),
    )
