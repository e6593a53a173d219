"""Near-duplicates of evaluation images, which no pool may keep.

In: pairs and the indexes of the evaluation sets. Out: the pairs without those that are
too similar to an evaluation image. Maps PCollection[Verdicts] to PCollection[Verdicts].
"""

import functools
from collections.abc import Callable, Sequence

import apache_beam as beam
import numpy as np

from pipeline.config.duplicates import ENCODER, Resemblance
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection.search import reference_sets
from pipeline.selection.search.reference_sets import Nearest, SetFiles
from pipeline.selection.unit_decisions import Verdicts

EvaluationBound = tuple[Resemblance, tuple[SetFiles, ...]]


class DropNearEvaluation(beam.PTransform):
    """Drops images that resemble an evaluation image, also of `keep_all` sources.

    Each bound comes with the sets as its descriptor sees them.
    """

    def __init__(self, run: RunFolder, bounds: Sequence[EvaluationBound]) -> None:
        super().__init__()
        self._run = run
        self._bounds = bounds

    def expand(self, verdicts: beam.PCollection[Verdicts]) -> beam.PCollection:
        for resemblance, sets in self._bounds:
            descriptor = resemblance.descriptor
            judge = functools.partial(
                drop_near_evaluation,
                max_similarity=resemblance.max_similarity,
                by="" if descriptor == ENCODER else f" by {descriptor.name}",
            )
            run = self._run.comparing(descriptor)
            verdicts = (
                verdicts
                | f"Search evaluation images by {descriptor.name}"
                >> beam.ParDo(reference_sets.Search(run, sets, judge))
            )
        return verdicts


def drop_near_evaluation(
    verdicts: Verdicts,
    search: Callable[[np.ndarray], Nearest],
    max_similarity: float,
    by: str = "",
) -> Verdicts:
    """Drops pairs more similar than that to some evaluation image, and names it.

    An image without an embedding is dropped as well: nobody can tell. `by` ends the
    detail.
    """
    rows = verdicts.kept_rows
    nearest = search(rows)
    similarity = nearest.best_similarity
    fails = np.flatnonzero(~(similarity <= max_similarity))
    return verdicts.drop(
        rows[fails],
        DropReason.NEAR_EVALUATION,
        value=similarity[fails],
        threshold=max_similarity,
        detail=[name + by for name in nearest.best_names(fails)],
    )
