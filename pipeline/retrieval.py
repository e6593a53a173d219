"""Retrieval of pool images that resemble curated seeds."""

import functools
import itertools
from collections.abc import Callable

import apache_beam as beam
import numpy as np

from pipeline import indexes
from pipeline.config import NearSeeds
from pipeline.indexes import Nearest, SetFiles
from pipeline.records import DropReason
from pipeline.run_folder import RunFolder
from pipeline.verdicts import Verdicts


class KeepCurated(beam.PTransform):
    """Keeps what some seed set wants, and records all sets that want it.

    Maps PCollection[Verdicts] to PCollection[Verdicts].
    """

    def __init__(
        self, run: RunFolder, sets: tuple[SetFiles, ...], retrieval: NearSeeds | None
    ) -> None:
        super().__init__()
        self._run = run
        self._sets = sets
        self._retrieval = retrieval

    def expand(self, verdicts: beam.PCollection[Verdicts]) -> beam.PCollection:
        if self._retrieval is None:
            return verdicts
        judge = functools.partial(
            keep_near_seeds, min_similarity=self._retrieval.min_similarity
        )
        return verdicts | "Search seeds" >> beam.ParDo(
            indexes.Search(self._run, self._sets, judge)
        )


def keep_near_seeds(
    verdicts: Verdicts,
    search: Callable[[np.ndarray], Nearest],
    min_similarity: float,
) -> Verdicts:
    """Drops pairs less similar than that to every seed; the nearest one is named."""
    rows = verdicts.contested_rows
    nearest = search(rows)
    is_wanted = nearest.similarity >= min_similarity
    fails = np.flatnonzero(~is_wanted.any(axis=0))
    names = [reference_set.name for reference_set in nearest.sets]
    return verdicts.with_seeds(rows, names_of(is_wanted, names)).drop(
        rows[fails],
        DropReason.FAR_FROM_SEEDS,
        value=nearest.best_similarity[fails],
        threshold=min_similarity,
        detail=nearest.best_names(fails),
    )


def names_of(is_wanted: np.ndarray, names: list[str]) -> np.ndarray:
    """For each column of `is_wanted` [s, n], the names of its true rows as a tuple."""
    wanted = (tuple(itertools.compress(names, column)) for column in is_wanted.T)
    return np.fromiter(wanted, dtype=object, count=is_wanted.shape[1])
