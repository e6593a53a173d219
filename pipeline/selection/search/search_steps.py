"""Beam steps that search evaluation and seed sets.

In: the files of the indexes. Out: DoFns that open them once per worker, and search with
one thread per process.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import apache_beam as beam
import faiss
import numpy as np
from apache_beam.utils.shared import Shared

from pipeline.engine.run_folder import RunFolder
from pipeline.engine.worker_checks import this_process as this_process
from pipeline.selection.lot_decisions import LotDecisions
from pipeline.selection.search.reference_sets import (
    IndexFiles,
    NearestImages,
    ReferenceSet,
    find_nearest,
)


class DoFnWithSets(beam.DoFn):
    """A DoFn that opens the sets once per worker, for all of its threads."""

    def __init__(self, sets: tuple[IndexFiles, ...]) -> None:
        self._paths = sets
        self._shared = Shared()
        self._launcher = this_process()

    def setup(self) -> None:
        self._opened = self._shared.acquire(lambda: _OpenSets(self._paths))

    def sets(self) -> Sequence[ReferenceSet]:
        """The sets; to be called in `process`, by the thread that searches."""
        limit_threads(self._launcher)
        return self._opened.sets


class Search(DoFnWithSets):
    """Lets `decide` drop pairs by their nearest images in the sets.

    `decide` gets the decisions and a function from rows to `NearestImages`. Maps
    PCollection[LotDecisions] to PCollection[LotDecisions].
    """

    def __init__(
        self,
        run: RunFolder,
        sets: tuple[IndexFiles, ...],
        decide: Callable[
            [LotDecisions, Callable[[np.ndarray], NearestImages]], LotDecisions
        ],
    ) -> None:
        super().__init__(sets)
        self._run = run
        self._decide = decide

    def process(self, decisions: LotDecisions) -> Iterator[LotDecisions]:
        search = functools.partial(find_nearest, self.sets(), self._run, decisions)
        yield self._decide(decisions, search)


class _OpenSets:
    """The sets that threads of a worker share. Beam holds it by a weak reference."""

    def __init__(self, paths: tuple[IndexFiles, ...]) -> None:
        self.sets = tuple(map(ReferenceSet.open, paths))


def limit_threads(launcher: tuple[str, int]) -> None:
    """Limits FAISS to one thread in worker processes, of which each core has one.

    `launcher` is `this_process` of the launcher. To be called by the thread that
    searches, as OpenMP keeps this setting per thread.
    """
    if this_process() != launcher:
        faiss.omp_set_num_threads(1)
