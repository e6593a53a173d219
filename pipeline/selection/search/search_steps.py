"""Beam steps that search evaluation and seed sets.

In: where the indexes of the sets lie. Out: steps that open them once per worker and
search in one thread per process.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import apache_beam as beam
import faiss
import numpy as np
from apache_beam.utils.shared import Shared

from pipeline.engine.run_folder import RunFolder
from pipeline.engine.worker_checks import this_process as this_process
from pipeline.selection.search.reference_sets import (
    IndexFiles,
    NearestImages,
    ReferenceSet,
    find_nearest,
)
from pipeline.selection.unit_decisions import UnitDecisions


class DoFnWithSets(beam.DoFn):
    """A step that has the sets at its hand, shared by the threads of a worker."""

    def __init__(self, sets: tuple[IndexFiles, ...]) -> None:
        self._paths = sets
        self._shared = Shared()
        self._launcher = this_process()

    def setup(self) -> None:
        self._opened = self._shared.acquire(lambda: _OpenSets(self._paths))

    def sets(self) -> Sequence[ReferenceSet]:
        """To call in `process`, in the thread that searches."""
        limit_threads(self._launcher)
        return self._opened.sets


class Search(DoFnWithSets):
    """Lets `decide` decide on decisions with a search of the sets at its hand.

    `decide` gets the decisions and a function from rows to `NearestImages`. Maps
    PCollection[UnitDecisions] to PCollection[UnitDecisions].
    """

    def __init__(
        self,
        run: RunFolder,
        sets: tuple[IndexFiles, ...],
        decide: Callable[
            [UnitDecisions, Callable[[np.ndarray], NearestImages]], UnitDecisions
        ],
    ) -> None:
        super().__init__(sets)
        self._run = run
        self._decide = decide

    def process(self, decisions: UnitDecisions) -> Iterator[UnitDecisions]:
        search = functools.partial(find_nearest, self.sets(), self._run, decisions)
        yield self._decide(decisions, search)


class _OpenSets:
    """What the threads of a worker share; Beam holds it by a weak reference."""

    def __init__(self, paths: tuple[IndexFiles, ...]) -> None:
        self.sets = tuple(map(ReferenceSet.open, paths))


def limit_threads(launcher: tuple[str, int]) -> None:
    """Leaves one thread to each worker process: there is one a core.

    `launcher` is `this_process` where the step was made. To call in the thread that
    searches: OpenMP keeps this setting by thread.
    """
    if this_process() != launcher:
        faiss.omp_set_num_threads(1)
