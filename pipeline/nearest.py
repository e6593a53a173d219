"""Retrieval of the pool images nearest to every curated seed, exactly.

Each shard finds its own nearest images of every seed, and these compete: k images a
seed and shard cross the shuffle, and no embedding.
"""

from collections.abc import Iterator
from typing import Literal

import apache_beam as beam
import faiss
import numpy as np
from apache_beam.pvalue import TaggedOutput

from pipeline import indexes
from pipeline.competition import Entrants, FindWinners, wanted_by_unit, winners
from pipeline.indexes import ReferenceSet, SetFiles
from pipeline.records import DropReason
from pipeline.run_folder import RunFolder
from pipeline.selection_config import NearestToSeeds
from pipeline.verdicts import Verdicts, read_rows, to_words

SEEDS_PER_BLOCK = 4096  # with 512 dimensions 8 MB; a block of FAISS, a key of Beam

_N_MORE = 4  # candidates beyond k, to see where rounding cannot matter any more
_PAIRS_PER_BLOCK = 8192  # 64 MB in double precision at 512 dimensions

BlockKey = tuple[str, int]  # name of the set, number of its first seed


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


class EnterNearest(indexes.WithSets):
    """Enters the nearest images of one unit into the competition of every seed."""

    def __init__(
        self, run: RunFolder, sets: tuple[SetFiles, ...], retrieval: NearestToSeeds
    ) -> None:
        super().__init__(sets)
        self._run = run
        self._retrieval = retrieval

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
                seeds, vectors, n_places
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
    rows, vectors = indexes.read_vectors(run, verdicts, contested)
    without = np.setdiff1d(contested, rows, assume_unique=True)
    reason = DropReason.FAR_FROM_SEEDS
    return verdicts.drop(without, reason, detail="no embedding"), rows, vectors


def nearest_by_block(
    seeds: ReferenceSet, vectors: np.ndarray, k: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the first seed of a block and `candidates` of its seeds."""
    for first in range(0, seeds.index.ntotal, SEEDS_PER_BLOCK):
        n_seeds = min(SEEDS_PER_BLOCK, seeds.index.ntotal - first)
        block = seeds.index.reconstruct_n(first, n_seeds)
        yield first, *candidates(block, vectors, k)


def candidates(
    seeds: np.ndarray, vectors: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seed, vector and similarity of pairs: of each seed at least its k nearest.

    All are unit vectors. FAISS proposes pairs in single precision; where its rounding
    could hide one of the nearest, all that are as near count. Similarities are then
    taken in double precision and rounded to float32, so that they do not depend on
    which vectors share a shard.
    """
    n_proposed = min(k + _N_MORE, len(vectors))
    products, proposed = faiss.knn(
        seeds, vectors, n_proposed, metric=faiss.METRIC_INNER_PRODUCT
    )
    bound = products[:, min(k, n_proposed) - 1] - 2 * _rounding(vectors.shape[1])
    seed, column = np.nonzero(products >= bound[:, None])
    place = proposed[seed, column]
    if n_proposed < len(vectors):
        is_open = products[:, -1] >= bound
        seed, place = _keep(~is_open[seed], seed, place)
        more_seed, more_place = _as_near(seeds, vectors, bound, np.flatnonzero(is_open))
        seed = np.concatenate([seed, more_seed])
        place = np.concatenate([place, more_place])
    return seed, place, _cosines(seeds, vectors, seed, place)


def _rounding(dim: int) -> float:
    """Bound on the error of a float32 product of two unit vectors, of any order.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    unit_roundoff = 2.0**-24
    return dim * unit_roundoff / (1 - dim * unit_roundoff)


def _keep(mask: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(array[mask] for array in arrays)


def _as_near(
    seeds: np.ndarray, vectors: np.ndarray, bound: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of the chosen seeds whose product reaches the bound of the seed."""
    found = [(chosen[:0], chosen[:0])]
    n_seeds = max(1, _PAIRS_PER_BLOCK * 256 // len(vectors))
    for start in range(0, len(chosen), n_seeds):
        mine = chosen[start : start + n_seeds]
        # Another order of summation than that of FAISS: rounds to another side.
        slack = 2 * _rounding(vectors.shape[1])
        is_near = seeds[mine] @ vectors.T >= bound[mine, None] - slack
        seed, place = np.nonzero(is_near)
        found.append((mine[seed], place))
    seed_parts, place_parts = zip(*found, strict=True)
    return np.concatenate(seed_parts), np.concatenate(place_parts)


def _cosines(
    seeds: np.ndarray, vectors: np.ndarray, seed: np.ndarray, place: np.ndarray
) -> np.ndarray:
    similarity = np.empty(len(seed), np.float32)
    for start in range(0, len(seed), _PAIRS_PER_BLOCK):
        mine = slice(start, start + _PAIRS_PER_BLOCK)
        left = seeds[seed[mine]].astype(np.float64)
        right = vectors[place[mine]].astype(np.float64)
        similarity[mine] = np.einsum("nd,nd->n", left, right).clip(-1, 1)
    return similarity
