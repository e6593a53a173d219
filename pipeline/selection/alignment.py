"""The alignment filter: keeps pairs whose text describes their image.

In: decisions and alignment scores. Out: the decisions, with the pairs dropped that
score below an absolute bound, or below the best share of the pool.

The transform maps PCollection[LotDecisions] to PCollection[LotDecisions].
"""

import functools
import json
from collections.abc import Mapping

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsSingleton

from pipeline.config.selection import KeepFraction, MinScore
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection import quantiles
from pipeline.selection.lot_decisions import LotDecisions, read_rows
from pipeline.selection.quantiles import Cut
from pipeline.storage import files

ALL_SOURCES = "all sources"  # no source can have this name
CUTS_NAME = "alignment_cuts.json"


class FilterAlignment(beam.PTransform):
    """Drops pairs whose text does not describe their image.

    A pair without a score is dropped. `KeepFraction` takes a share of all droppable
    pairs, or of those of each source, with or without a score, and rounds the number to
    keep up. Pairs that tie with the last one to keep are kept too. The cuts are written
    to `alignment_cuts.json` in `folder`, the folder of the decisions.
    """

    def __init__(
        self,
        run: RunFolder,
        alignment: MinScore | KeepFraction | None,
        folder: str,
    ) -> None:
        super().__init__()
        self._run = run
        self._alignment = alignment
        self._folder = folder

    def expand(self, decisions: beam.PCollection[LotDecisions]) -> beam.PCollection:
        match self._alignment:
            case None:
                return decisions
            case MinScore(min_score):
                return decisions | "Compare scores" >> beam.Map(
                    filter_alignment, self._run, min_score
                )
            case KeepFraction() as share:
                cuts = AsSingleton(
                    decisions
                    | "Record cuts" >> RecordCuts(self._run, share, self._folder)
                )
                return decisions | "Compare with cuts" >> beam.Map(
                    filter_by_cut, self._run, share, cuts
                )


class RecordCuts(beam.PTransform):
    """Finds the cut of each group, and writes them down before any is used.

    Maps PCollection[LotDecisions] to one dictionary, group to cut.
    """

    def __init__(self, run: RunFolder, share: KeepFraction, folder: str) -> None:
        super().__init__()
        self._run = run
        self._share = share
        self._path = files.join(folder, CUTS_NAME)

    def expand(
        self, decisions: beam.PCollection[LotDecisions]
    ) -> beam.PCollection[dict]:
        read = functools.partial(droppable_scores, run=self._run, share=self._share)
        return (
            decisions
            | "Find quantiles" >> quantiles.FindCuts(self._share.keep_fraction, read)
            | "Collect cuts" >> beam.combiners.ToDict()
            | "Write cuts" >> beam.Map(write_cuts, self._path)
        )


def write_cuts(group_to_cut: dict[str, Cut], path: str) -> dict[str, Cut]:
    """Writes the cuts to a file, and returns them."""
    content = json.dumps(quantiles.to_json(group_to_cut), indent=2) + "\n"
    files.write(path, content.encode())
    return group_to_cut


def filter_by_cut(
    decisions: LotDecisions,
    run: RunFolder,
    share: KeepFraction,
    group_to_cut: Mapping[str, Cut],
) -> LotDecisions:
    """Drops pairs whose alignment score is below the cut of their group."""
    cut = group_to_cut[_group_of(decisions, share)].score
    return filter_alignment(decisions, run, cut)


def filter_alignment(
    decisions: LotDecisions, run: RunFolder, cut: float
) -> LotDecisions:
    """Drops pairs whose alignment score is below `cut`, and pairs without a score."""
    rows = decisions.droppable_rows
    scores = read_scores(decisions, run, rows)
    fails = ~(scores >= cut)
    return decisions.drop(
        rows[fails],
        DropReason.LOW_ALIGNMENT,
        value=scores[fails],
        threshold=cut,
        detail=np.where(np.isnan(scores[fails]), "no score", ""),
    )


def droppable_scores(
    decisions: LotDecisions, run: RunFolder, share: KeepFraction
) -> tuple[str, np.ndarray]:
    """The group of a lot, and the alignment scores of its droppable pairs, float32."""
    scores = read_scores(decisions, run, decisions.droppable_rows)
    return _group_of(decisions, share), scores.astype(np.float32)


def _group_of(decisions: LotDecisions, share: KeepFraction) -> str:
    return decisions.lot.source.name if share.per_source else ALL_SOURCES


def read_scores(
    decisions: LotDecisions, run: RunFolder, rows: np.ndarray
) -> np.ndarray:
    """Alignment scores of some pairs: cosines, float64; NaN where there is none."""
    tables = run.embeddings(decisions.lot.source)
    scores = read_rows(tables, decisions, rows, "alignment_score")
    return scores["alignment_score"].to_numpy().astype(np.float64)
