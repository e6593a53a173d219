"""Scores one shard: measures its pairs, and writes them in parts.

In: a shard of a lot that lacks tables. Out: parts with the rows of those tables. Rows
that another lot has of the same shard are taken over, and no model runs on them again.
"""

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared
from apache_beam.utils.windowed_value import WindowedValue

from pipeline.config.curation import CurationConfig, ImageTextSource
from pipeline.engine.counters import add_to_counter
from pipeline.engine.removals import Removals
from pipeline.engine.run_folder import RunFolder
from pipeline.engine.worker_checks import WorkerChecks
from pipeline.models import descriptors, language
from pipeline.records import Pair
from pipeline.scoring import environment
from pipeline.scoring.encoder_handler import EncoderHandler
from pipeline.scoring.missing_tables import Measure, tables_by_source
from pipeline.scoring.parts import Part, ShardParts
from pipeline.scoring.shard_pass import STAGE, MeasuredPair, ShardPass, ShardScores
from pipeline.scoring.shard_work import ScoredShard, ShardWork
from pipeline.storage.tables import LotTables, from_table, open_table

PART_S = 30.0  # a worker that dies loses no more work than this, and a batch

_Counters = tuple[str, str]
_Rows = Mapping[Measure, pa.Table]
_Scored = tuple[str, ScoredShard]  # with the name of its lot


def _counters_by_source(config: CurationConfig) -> dict[ImageTextSource, _Counters]:
    """Names of the counters of rows and of unreadable rows of each source."""
    return (
        dict.fromkeys(config.seed_sets, ("seed_images", "seed_unreadable"))
        | dict.fromkeys(
            config.evaluation_sets, ("evaluation_images", "evaluation_unreadable")
        )
        | dict.fromkeys(config.sources, ("pairs", "unreadable"))
    )


class ScoreShard(beam.DoFn):
    """Scores one shard at a time on all cores; yields (name of its lot, scored shard).

    The last part of a shard is written while the next shard is measured, and the shard
    is passed on after that one. Yields nothing of a shard that changed while it was
    read.
    """

    def __init__(self, run: RunFolder, encoder_handler: EncoderHandler) -> None:
        self._root = run.root
        self._source_to_tables = tables_by_source(run)
        self._source_to_counters = _counters_by_source(run.config)
        self._limits = run.config.limits
        self._detector_name = run.config.language_detector
        self._handler = encoder_handler
        checkpoint = run.config.encoder.checkpoint
        digest = run.checkpoint_to_digest[checkpoint]
        self._checks = WorkerChecks.of(checkpoint, digest)
        measures = {m for tables in self._source_to_tables.values() for m in tables}
        self._measure_to_shared = {measure: Shared() for measure in measures}
        # `Shared` holds weak references; this keeps the models while the DoFn lives.
        self._measure_to_model: dict[Measure, Any] = {}

    def setup(self) -> None:
        self._checks.at_start()
        self._removed = Removals.read(self._root).open_names(self._root)
        self._last_parts = futures.ThreadPoolExecutor(1)

    def start_bundle(self) -> None:
        self._in_work: tuple[_Scored, futures.Future[None]] | None = None

    def process(self, work: ShardWork) -> Iterator[_Scored]:
        tables = self._source_to_tables[work.shard.source]
        parts = ShardParts.of(self._root, tables, work.lot_name, work.shard)
        done = parts.find(work.missing)
        if done and done[-1].is_last:
            yield work.lot_name, work.scored()
            return
        try:
            last_part = self._write_rest(work, parts, done[-1].stop if done else 0)
        finally:  # whatever becomes of a shard, the one before it is written
            before = self._wait_for_last_part()
        yield from before
        if last_part is None:
            add_to_counter(STAGE, "shards_changed", 1)
        else:
            self._in_work = (work.lot_name, work.scored()), last_part

    def finish_bundle(self) -> Iterator[WindowedValue]:
        yield from map(GlobalWindows.windowed_value, self._wait_for_last_part())

    def teardown(self) -> None:
        self._last_parts.shutdown()

    def _wait_for_last_part(self) -> Sequence[_Scored]:
        """The shard whose last part was still to be written, if there is one."""
        if self._in_work is None:
            return ()
        (scored, last_part), self._in_work = self._in_work, None
        last_part.result()
        return (scored,)

    def _write_rest(
        self, work: ShardWork, parts: ShardParts, start: int
    ) -> futures.Future[None] | None:
        """Writes the parts from row `start` on, of which the last one is left to a
        thread; None if the shard is not what it was."""
        known = {m: rows.slice(start) for m, rows in self._read_known(work).items()}
        to_make = [m for m in work.missing if m not in known]
        taken = {m: rows for m, rows in known.items() if m in work.missing}
        environments = self._read_environments(work, taken)
        if not to_make:
            n_rows = known["pairs"].num_rows
            add_to_counter(STAGE, "pairs_taken_over", n_rows)
            errors = known["pairs"]["error"].to_pylist()
            part = Part(start, start + n_rows, sum(map(bool, errors)), is_last=True)
            return self._last_parts.submit(parts.write, part, taken, environments)
        here = environment.describe(to_make, self._handler.config.batch_size)
        one_pass = self._plan_pass(to_make)
        if "pairs" in known:
            measured = one_pass.over_pairs(work.shard, from_table(known["pairs"], Pair))
        else:
            measured = one_pass.over_shard(work.shard, start)
        counters = self._source_to_counters[work.shard.source]
        add_part = functools.partial(parts.write, environments=(*environments, here))
        writer = _PartWriter(
            add_part, self._handler, one_pass, to_make, counters, taken
        )
        writer.write(measured, start)
        if "pairs" in to_make and work.shard.has_changed():
            return None
        writer.count()
        return self._last_parts.submit(writer.finish)

    def _read_known(self, work: ShardWork) -> _Rows:
        """The rows of the shard in tables of its lot, or in those of its donor."""
        tables = self._source_to_tables[work.shard.source]
        if "pairs" not in work.missing:
            pairs = _read_shard(tables["pairs"], work.lot_name, work.number)
            return {"pairs": pairs[0]}
        if work.donor is None:
            return {}
        name, number = work.donor.lot_name, work.donor.number
        pairs, first = _read_shard(tables["pairs"], name, number)
        known: dict[Measure, pa.Table] = {"pairs": pairs}
        for measure in work.missing:
            if measure != "pairs" and tables[measure].has(name):
                rows = _read_rows(tables[measure], name, first, pairs.num_rows)
                known[measure] = rows
        return known

    def _read_environments(
        self, work: ShardWork, measures: Iterable[Measure]
    ) -> Sequence[str]:
        """The environments that rows of a donor were measured in."""
        if work.donor is None:
            return ()
        tables = self._source_to_tables[work.shard.source]
        summaries = (tables[m].read_summary(work.donor.lot_name) for m in measures)
        return [each for found in summaries for each in found.get(environment.KEY, ())]

    def _plan_pass(self, to_make: Sequence[Measure]) -> ShardPass:
        """Loads a model only if a table needs it."""
        return ShardPass(
            limits=self._limits,
            detector=self._model("languages") if "languages" in to_make else None,
            encoder=self._model("embeddings") if "embeddings" in to_make else None,
            image_descriptors={
                m: self._model(m) for m in to_make if not isinstance(m, str)
            },
            removed=self._removed,
        )

    def _model(self, measure: Measure) -> Any:
        load = functools.partial(self._load, measure)
        model = self._measure_to_shared[measure].acquire(load)
        self._measure_to_model[measure] = model
        return model

    def _load(self, measure: Measure) -> Any:
        if measure == "embeddings":
            self._checks.before_load()
            return self._handler.load_model()
        if isinstance(measure, str):
            return language.detector(self._detector_name)
        return descriptors.load(measure, self._handler.config)


class _PartWriter:
    """Writes measured pairs in parts, which end between two batches.

    So the batches, and with them the last bits of what models say, do not depend on
    where parts end. The last part is held back until `finish`.
    """

    def __init__(
        self,
        add_part: Callable[[Part, _Rows], None],
        handler: EncoderHandler,
        one_pass: ShardPass,
        measures: Sequence[Measure],
        counters: _Counters,
        taken: _Rows,
    ) -> None:
        self._add_part = add_part
        self._make_scores = functools.partial(ShardScores, handler, one_pass)
        self._measures = measures
        self._counters = counters
        self._taken = taken  # rows from the first one on that is to be written
        self._scores = self._make_scores()
        self._start = self._first = 0

    def write(self, measured: Iterator[MeasuredPair], start: int) -> None:
        self._start = self._first = start
        begun_s = time.monotonic()
        for pair in measured:
            is_due = time.monotonic() - begun_s >= PART_S
            if is_due and self._scores.n_pairs and self._scores.is_between_batches:
                self.count()
                self._write_part(is_last=False)
                begun_s = time.monotonic()
            self._scores.add(pair)

    def count(self) -> None:
        """Counts the rows of the part that is to be written next."""
        for measure in self._measures:
            self._scores.count(measure, *self._counters)

    def finish(self) -> None:
        """Writes the last part. Counts nothing, which a thread of its own could not."""
        self._write_part(is_last=True)

    def _write_part(self, *, is_last: bool) -> None:
        scores, n_pairs = self._scores, self._scores.n_pairs
        part = Part(self._start, self._start + n_pairs, scores.n_unreadable, is_last)
        offset = self._start - self._first
        taken = {m: rows.slice(offset, n_pairs) for m, rows in self._taken.items()}
        made = {measure: scores.table(measure) for measure in self._measures}
        self._add_part(part, taken | made)
        self._start += n_pairs
        self._scores = self._make_scores()


def _read_shard(tables: LotTables, lot_name: str, number: int) -> tuple[pa.Table, int]:
    """The pairs of one shard of a lot, and how many rows come before them."""
    with open_table(tables.path(lot_name)) as file:
        numbers = pq.read_table(file, columns=["shard"])["shard"].to_numpy()
    first, stop = numbers.searchsorted([number, number + 1]).tolist()
    return _read_rows(tables, lot_name, first, stop - first), first


def _read_rows(tables: LotTables, lot_name: str, first: int, n_rows: int) -> pa.Table:
    """Some rows of the table of a lot; reads only the groups of rows that hold them."""
    with open_table(tables.path(lot_name)) as file:
        opened = pq.ParquetFile(file, pre_buffer=True)
        start, offset = 0, 0
        groups: list[int] = []
        for group in range(opened.num_row_groups):
            stop = start + opened.metadata.row_group(group).num_rows
            if start < first + n_rows and stop > first:
                offset = offset if groups else first - start
                groups.append(group)
            start = stop
        return opened.read_row_groups(groups).slice(offset, n_rows)
