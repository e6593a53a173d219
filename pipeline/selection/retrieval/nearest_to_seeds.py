"""Retrieval of the pool images nearest to every curated seed, exactly.

Each shard finds its own nearest images of every seed, and these compete: k images a
seed and shard cross the shuffle, and no embedding.
"""

from collections.abc import Iterator
from typing import Literal

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import TaggedOutput

from pipeline.config.selection import NearestToSeeds
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection.retrieval.top_k import (
    Entrants,
    FindWinners,
    wanted_by_unit,
    winners,
)
from pipeline.selection.search import exact_search, reference_sets
from pipeline.selection.search.embeddings import read_vectors
from pipeline.selection.search.reference_sets import ReferenceSet, SetFiles
from pipeline.selection.unit_decisions import Verdicts, read_rows, to_words

SEEDS_PER_BLOCK = 4096  # with 512 dimensions 8 MB; a block of FAISS, a key of Beam

BlockKey = tuple[str, int]  # name of the set, number of its first seed
Floors = dict[BlockKey, np.ndarray]  # what a product with each seed must reach


def find_nearest(
    verdicts: beam.PCollection[Verdicts],
    run: RunFolder,
    sets: tuple[SetFiles, ...],
    retrieval: NearestToSeeds,
) -> tuple[beam.PCollection, beam.PCollection]:
    """Verdicts and what the sets want: (unit name, Wanted).

    Images without an embedding are dropped from the verdicts.
    """
    judged, entrants = verdicts | "Search pool images" >> beam.ParDo(
        EnterNearest(run, sets, retrieval)
    ).with_outputs("entrants", main="verdicts")
    wanted = (
        entrants
        | "Merge nearest" >> beam.CombinePerKey(FindWinners())
        | "Send nearest home"
        >> beam.FlatMapTuple(lambda key, won: wanted_by_unit(key[0], won))
    )
    return judged, wanted


class EnterNearest(reference_sets.WithSets):
    """Enters the nearest images of one unit into the competition of every seed."""

    def __init__(
        self, run: RunFolder, sets: tuple[SetFiles, ...], retrieval: NearestToSeeds
    ) -> None:
        super().__init__(sets)
        self._run = run
        self._retrieval = retrieval
        self._floors: Floors = {}

    def process(
        self, verdicts: Verdicts
    ) -> Iterator[
        Verdicts | TaggedOutput[Literal["entrants"], tuple[BlockKey, Entrants]]
    ]:
        verdicts, rows, vectors = with_embedding(verdicts, self._run)
        yield verdicts
        if not len(rows):
            return
        ids = read_rows(
            self._run.pairs(verdicts.unit.source), verdicts, rows, "sample_id"
        )
        sample_id = to_words(ids["sample_id"])
        for seeds in self.sets():
            n_places = self._retrieval.k_of(seeds.name)
            for first, seed, place, similarity in nearest_by_block(
                seeds, vectors, n_places, self._floors
            ):
                entrants = Entrants.of_unit(
                    verdicts.unit.name,
                    n_places,
                    group=seed,
                    rank=-similarity.astype(np.float64),
                    sample_id=sample_id[place],
                    row=rows[place],
                )
                key = (seeds.name, first)
                yield TaggedOutput("entrants", (key, winners([entrants])))


def with_embedding(
    verdicts: Verdicts, run: RunFolder
) -> tuple[Verdicts, np.ndarray, np.ndarray]:
    """Drops contested pairs without an embedding; rows and vectors of the others."""
    contested = verdicts.contested_rows
    rows, vectors = read_vectors(run, verdicts, contested)
    without = np.setdiff1d(contested, rows, assume_unique=True)
    reason = DropReason.FAR_FROM_SEEDS
    return verdicts.drop(without, reason, detail="no embedding"), rows, vectors


def nearest_by_block(
    seeds: ReferenceSet, vectors: np.ndarray, k: int, floors: Floors
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the first seed of a block and `exact_search.candidates` of its seeds."""
    for first in range(0, len(seeds.vectors), SEEDS_PER_BLOCK):
        block = seeds.vectors[first : first + SEEDS_PER_BLOCK]
        unreached = np.full(len(block), -np.inf, np.float32)
        floor = floors.setdefault((seeds.name, first), unreached)
        yield first, *exact_search.candidates(block, vectors, k, floor)
