"""Retrieval of the k images of the pool nearest to each curated seed, exactly.

In: decisions and the indexes of the seed sets. Out: the decisions, and the hits of each
set. Each shard proposes its k images nearest to each seed, and the best of all shards
are kept. Only ids cross the shuffle, no embedding.
"""

from collections.abc import Iterator
from typing import Literal

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import TaggedOutput

from pipeline.config.selection import NearestToSeeds
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection.lot_decisions import LotDecisions, read_rows, to_words
from pipeline.selection.retrieval.top_k import (
    Candidates,
    TopKPerGroup,
    hits_by_lot,
    top_k,
)
from pipeline.selection.search import exact_search, search_steps
from pipeline.selection.search.embeddings import read_vector_blocks
from pipeline.selection.search.reference_sets import IndexFiles, ReferenceSet

SEEDS_PER_BLOCK = 4096  # with 512 dimensions 8 MB; a block of FAISS, a key of Beam

BlockKey = tuple[str, int]  # name of the set, number of its first seed
Floors = dict[
    BlockKey, np.ndarray
]  # the cosine that an image must reach for each seed of a block


def find_nearest(
    decisions: beam.PCollection[LotDecisions],
    run: RunFolder,
    sets: tuple[IndexFiles, ...],
    retrieval: NearestToSeeds,
) -> tuple[beam.PCollection, beam.PCollection]:
    """Returns the decisions, and the hits of the sets as (lot name, SeedHits).

    Images without an embedding are dropped.
    """
    decided, candidates = decisions | "Search pool images" >> beam.ParDo(
        ProposeNearest(run, sets, retrieval)
    ).with_outputs("candidates", main="decisions")
    hits = (
        candidates
        | "Merge nearest" >> beam.CombinePerKey(TopKPerGroup())
        | "Name lots of nearest"
        >> beam.FlatMapTuple(lambda key, won: hits_by_lot(key[0], won))
    )
    return decided, hits


class ProposeNearest(search_steps.DoFnWithSets):
    """Proposes the images of one lot that are nearest to each seed."""

    def __init__(
        self, run: RunFolder, sets: tuple[IndexFiles, ...], retrieval: NearestToSeeds
    ) -> None:
        super().__init__(sets)
        self._run = run
        self._retrieval = retrieval
        self._floors: Floors = {}

    def process(
        self, decisions: LotDecisions
    ) -> Iterator[
        LotDecisions | TaggedOutput[Literal["candidates"], tuple[BlockKey, Candidates]]
    ]:
        ids = read_rows(
            self._run.pairs(decisions.lot.source),
            decisions,
            np.arange(len(decisions.outcome)),
            "sample_id",
        )
        sample_id = to_words(ids["sample_id"])
        embedded = [np.empty(0, np.int64)]
        blocks = read_vector_blocks(self._run, decisions, decisions.droppable_rows)
        for rows, vectors in blocks:
            embedded.append(rows)
            for key, seed, place, similarity in self._search(vectors):
                row = rows[place]
                candidates = Candidates.of_lot(
                    decisions.lot.name,
                    self._retrieval.k_of(key[0]),
                    group=seed,
                    rank=-similarity.astype(np.float64),
                    sample_id=sample_id[row],
                    row=row,
                )
                yield TaggedOutput("candidates", (key, top_k([candidates])))
        yield drop_without_embedding(decisions, np.concatenate(embedded))

    def _search(
        self, vectors: np.ndarray
    ) -> Iterator[tuple[BlockKey, np.ndarray, np.ndarray, np.ndarray]]:
        """Yields the key of a block of seeds and `candidates` of its seeds."""
        for seeds in self.sets() if len(vectors) else ():
            k = self._retrieval.k_of(seeds.name)
            found = nearest_by_block(seeds, vectors, k, self._floors)
            for first, seed, place, similarity in found:
                yield (seeds.name, first), seed, place, similarity


def drop_without_embedding(
    decisions: LotDecisions, embedded: np.ndarray
) -> LotDecisions:
    """Drops droppable pairs but the `embedded` rows."""
    without = np.setdiff1d(decisions.droppable_rows, embedded, assume_unique=True)
    reason = DropReason.FAR_FROM_SEEDS
    return decisions.drop(without, reason, detail="no embedding")


def nearest_by_block(
    seeds: ReferenceSet, vectors: np.ndarray, k: int, floors: Floors
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the first seed of a block and `exact_search.candidates` of its seeds."""
    for first in range(0, len(seeds.vectors), SEEDS_PER_BLOCK):
        block = seeds.vectors[first : first + SEEDS_PER_BLOCK]
        unreached = np.full(len(block), -np.inf, np.float32)
        floor = floors.setdefault((seeds.name, first), unreached)
        yield first, *exact_search.candidates(block, vectors, k, floor)
