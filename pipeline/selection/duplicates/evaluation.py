"""Near-duplicates of evaluation images, which must not be trained on.

In: decisions on pairs and the indexes of the evaluation sets. Out: the decisions, with
the pairs dropped that are too similar to an evaluation image. The transform maps
PCollection[LotDecisions] to PCollection[LotDecisions].
"""

import functools
from collections.abc import Callable, Sequence

import apache_beam as beam
import numpy as np

from pipeline.config.duplicates import ENCODER, Resemblance
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection.lot_decisions import LotDecisions
from pipeline.selection.search import search_steps
from pipeline.selection.search.reference_sets import IndexFiles, NearestImages

EvaluationBound = tuple[Resemblance, tuple[IndexFiles, ...]]


class DropNearEvaluation(beam.PTransform):
    """Drops images that resemble an evaluation image, in `keep_all` sources too.

    Each bound comes with the indexes of its descriptor.
    """

    def __init__(self, run: RunFolder, bounds: Sequence[EvaluationBound]) -> None:
        super().__init__()
        self._run = run
        self._bounds = bounds

    def expand(self, decisions: beam.PCollection[LotDecisions]) -> beam.PCollection:
        for resemblance, sets in self._bounds:
            descriptor = resemblance.descriptor
            decide = functools.partial(
                drop_near_evaluation,
                max_similarity=resemblance.max_similarity,
                by="" if descriptor == ENCODER else f" by {descriptor.name}",
            )
            run = self._run.comparing(descriptor)
            decisions = (
                decisions
                | f"Search evaluation images by {descriptor.name}"
                >> beam.ParDo(search_steps.Search(run, sets, decide))
            )
        return decisions


def drop_near_evaluation(
    decisions: LotDecisions,
    search: Callable[[np.ndarray], NearestImages],
    max_similarity: float,
    by: str = "",
) -> LotDecisions:
    """Drops pairs whose cosine with some evaluation image is above `max_similarity`.

    The detail is the nearest evaluation image, followed by `by`. An image without an
    embedding is dropped as well, as it might be a copy.
    """
    rows = decisions.kept_rows
    nearest = search(rows)
    similarity = nearest.best_similarity
    fails = np.flatnonzero(~(similarity <= max_similarity))
    return decisions.drop(
        rows[fails],
        DropReason.NEAR_EVALUATION,
        value=similarity[fails],
        threshold=max_similarity,
        detail=[name + by for name in nearest.best_names(fails)],
    )
