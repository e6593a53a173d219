"""Makes the parts of the report on workers, where a run has many lots.

In: a run whose pairs are decided. Out: the parts that lots lack. Those of a few lots
are left to the launcher, for which a pipeline would take longer.
"""

from collections.abc import Mapping

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.engine.run_folder import RunFolder
from pipeline.engine.stage_runner import run_stage
from pipeline.report import lot_parts
from pipeline.report.charts import count_by_outcome
from pipeline.report.lot_parts import Bounds, PartMaker
from pipeline.report.page_data import choose_bounds
from pipeline.report.pair_facts import Reader, References, find_indexes
from pipeline.sources.shards import Lot

STAGE = "report"

_MAX_HERE = 4  # lots whose parts the launcher makes


def make_missing(
    run: RunFolder, ledger: Mapping[str, object], options: PipelineOptions
) -> None:
    """Makes the parts that are missing if there are many."""
    bounds = choose_bounds(count_by_outcome(ledger), References.open(run))
    missing = lot_parts.find_missing(run, bounds)
    if len(missing) > _MAX_HERE:
        run_stage(run, missing, STAGE, MakeParts(run, bounds), options)


class MakeParts(beam.PTransform):
    """Makes the parts of lots."""

    def __init__(self, run: RunFolder, bounds: Bounds) -> None:
        super().__init__()
        self._make = _MakePart(run, bounds)

    def expand(self, lots: beam.PCollection[Lot]) -> beam.PCollection:
        return (
            lots
            | "Distribute lots" >> beam.Reshuffle()
            | "Make parts" >> beam.ParDo(self._make)
        )


class _MakePart(beam.DoFn):
    """Makes the part of one lot."""

    def __init__(self, run: RunFolder, bounds: Bounds) -> None:
        self._run = run.without_lots()
        self._decisions, self._parts = run.decisions, lot_parts.tables(run)
        self._indexes = find_indexes(run)
        self._bounds = bounds

    def setup(self) -> None:
        references = References.of(*self._indexes)
        reader = Reader(self._run, self._decisions, references)
        self._maker = PartMaker(self._run, self._parts, reader, self._bounds)

    def process(self, lot: Lot) -> None:
        self._maker.make(lot)
