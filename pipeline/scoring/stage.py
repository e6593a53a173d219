"""Stage 1, score: everything measured on every input pair of a unit.

In: units. Out: the tables of a unit (the pairs, the language of their alt text, their
embeddings, the vectors of each descriptor), which have a row for each pair in the same
order, and the units again. One pass over a shard makes the missing tables and no
others; a pair that cannot be read gets its rows too.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.utils.shared import Shared

from pipeline.config.curation import CurationConfig, ImageTextSource
from pipeline.engine.counters import add_to_counter
from pipeline.engine.run_folder import RunFolder
from pipeline.engine.worker_checks import WorkerChecks
from pipeline.models import descriptors, language
from pipeline.records import Pair
from pipeline.scoring.encoder_handler import EncoderHandler
from pipeline.scoring.missing_tables import Measure, Tables, tables_by_source
from pipeline.scoring.shard_pass import STAGE as STAGE
from pipeline.scoring.shard_pass import ShardPass, UnitScores
from pipeline.sources.shards import Unit, shard_name_of
from pipeline.storage import files
from pipeline.storage.tables import UnitTables, from_table


class Score(beam.PTransform):
    """Writes the tables that units lack, and passes the units on.

    A shard that is not what it was when it was listed gets no tables and is not passed
    on: the next run lists what it holds by then.

    Counters: `pairs` written, and how many of them are `unreadable`, and likewise
    `evaluation_images` and `evaluation_unreadable`, `seed_images` and
    `seed_unreadable`; `images_encoded`, `texts_encoded`, `languages_detected` and
    `images_described`; `members_left_out`, which a key has besides those of its pair;
    `units_skipped`, which lack nothing, and `units_changed`.
    """

    def __init__(self, run: RunFolder, encoder_handler: EncoderHandler) -> None:
        super().__init__()
        self._score_unit = _ScoreUnit(run, encoder_handler)
        self._workers = run.config.score_workers

    def expand(self, units: beam.PCollection) -> beam.PCollection:
        score_shards = beam.ParDo(self._score_unit)
        return units | "Score shards" >> score_shards.with_resource_hints(
            **self._workers.hints
        )


def remove_outdated(run: RunFolder, changed: Iterable[Unit]) -> None:
    """Removes the tables of what shards held before, once those of now are there."""
    source_to_tables = tables_by_source(run)
    for source, group in itertools.groupby(changed, lambda unit: unit.source):
        shard_to_name = {unit.shard_name: unit.name for unit in group}
        for unit_tables in source_to_tables[source].values():
            names = unit_tables.unit_names()
            outdated = [
                f"{name}.parquet"
                for name in sorted(names)
                if shard_to_name.get(shard_name_of(name), name) != name
            ]
            files.delete(unit_tables.folder, outdated)


_Counters = tuple[str, str]


def _counters_by_source(config: CurationConfig) -> dict[ImageTextSource, _Counters]:
    """Names of the counters of rows and of unreadable rows of each source."""
    return (
        dict.fromkeys(config.seed_sets, ("seed_images", "seed_unreadable"))
        | dict.fromkeys(
            config.evaluation_sets, ("evaluation_images", "evaluation_unreadable")
        )
        | dict.fromkeys(config.sources, ("pairs", "unreadable"))
    )


class _ScoreUnit(beam.DoFn):
    """Scores one unit at a time on all cores."""

    def __init__(self, run: RunFolder, encoder_handler: EncoderHandler) -> None:
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

    def process(self, unit: Unit) -> Iterator[Unit]:
        tables = self._source_to_tables[unit.source]
        missing = {
            measure: unit_tables
            for measure, unit_tables in tables.items()
            if not files.is_file(unit_tables.path(unit.name))
        }
        if missing:
            scores = self._score(unit, tables["pairs"], missing)
            if "pairs" in missing and unit.has_changed():
                add_to_counter(STAGE, "units_changed", 1)
                return
            for measure, unit_tables in missing.items():
                unit_tables.write(unit.name, scores.table(measure))
                scores.count(measure, *self._source_to_counters[unit.source])
        else:
            add_to_counter(STAGE, "units_skipped", 1)
        yield unit

    def _score(
        self, unit: Unit, pair_tables: UnitTables, missing: Tables
    ) -> UnitScores:
        one_pass = self._plan_pass(missing)
        if "pairs" in missing:
            measured = one_pass.over_shard(unit)
        else:
            pairs = from_table(pair_tables.read(unit.name), Pair)
            measured = one_pass.over_pairs(unit, pairs)
        scores = UnitScores(self._handler, one_pass)
        for pair in measured:
            scores.add(pair)
        return scores

    def _plan_pass(self, missing: Tables) -> ShardPass:
        """Loads a model only if a table needs it."""
        return ShardPass(
            limits=self._limits,
            detector=self._model("languages") if "languages" in missing else None,
            encoder=self._model("embeddings") if "embeddings" in missing else None,
            image_descriptors={
                m: self._model(m) for m in missing if not isinstance(m, str)
            },
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
