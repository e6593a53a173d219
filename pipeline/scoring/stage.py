"""Stage 1, score: everything measured on every input pair of a unit.

In: units. Out: the tables of a unit, row by row alike (the pairs, the language of their
alt text, their embeddings, what each descriptor says of them), and the units again. One
pass over a shard makes the tables that are missing and no others; a pair that cannot be
read gets its rows too.
"""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler
from apache_beam.utils.shared import Shared

from pipeline.config.curation import (
    CurationConfig,
    EncoderConfig,
    ImageTextSource,
    Limits,
)
from pipeline.config.duplicates import Descriptor
from pipeline.engine.run_folder import RunFolder
from pipeline.engine.worker_checks import WorkerChecks
from pipeline.images import decoder as images
from pipeline.models import descriptors, language
from pipeline.models.descriptors import DescriptorTable, ImageDescriptor
from pipeline.models.interfaces import Encoder
from pipeline.records import Language, Pair, content_hash, sample_id
from pipeline.sources import shards
from pipeline.sources.shards import RawPair, Unit, shard_name_of
from pipeline.storage import files
from pipeline.storage.prefetch import map_ahead
from pipeline.storage.tables import UnitTables, from_table, to_table

STAGE = "score"

_MIN_AHEAD = 64  # pairs in work besides one batch: enough for all cores


@dataclasses.dataclass(frozen=True)
class PreparedPair:
    """A readable pair as an encoder wants it."""

    pixels: np.ndarray  # uint8 [s, s, 3]
    alt_text: str  # may be empty


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What an encoder says of one pair."""

    embedding: np.ndarray  # of the image: float32 [d], of length 1
    alignment_score: float  # cosine of image and alt text; NaN without alt text


def check(run: RunFolder) -> None:
    """Raises ValueError if the encoder is still needed and cannot be read."""
    units = (*run.units, *run.evaluation_units, *run.seed_units)
    source_to_names = {
        source: run.embeddings(source).unit_names()
        for source in {unit.source for unit in units}
    }
    if all(unit.name in source_to_names[unit.source] for unit in units):
        return
    from pipeline.models import encoders  # JAX takes seconds

    encoders.check(run.config.encoder)


class EncoderHandler(ModelHandler[PreparedPair, Embedded, Encoder]):
    """The encoder of a configuration."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(max_batch_size=config.batch_size)
        self.config = config

    def load_model(self) -> Encoder:
        from pipeline.models import encoders  # JAX takes seconds

        return encoders.load_encoder(self.config)

    def run_inference(
        self,
        batch: Sequence[PreparedPair],
        model: Encoder,
        inference_args: dict[str, Any] | None = None,
    ) -> list[Embedded]:
        """Embeds all images, and the alt texts that are not empty."""
        embeddings = model.encode_images(np.stack([pair.pixels for pair in batch]))
        scores = np.full(len(batch), math.nan)
        rows = [row for row, pair in enumerate(batch) if pair.alt_text]
        if rows:
            texts = model.encode_texts([batch[row].alt_text for row in rows])
            scores[rows] = (embeddings[rows] * texts).sum(axis=1)
        return [Embedded(*row) for row in zip(embeddings, scores.tolist(), strict=True)]


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


Measure = str | Descriptor  # "pairs", "languages", "embeddings", or by a descriptor
Tables = dict[Measure, UnitTables]
_Counters = tuple[str, str]


def _tables_by_source(run: RunFolder) -> dict[ImageTextSource, Tables]:
    """Tables to make of each source.

    Evaluation and seed images need no language, and only what is compared with
    evaluation images is described.
    """
    config = run.config
    source_to_tables: dict[ImageTextSource, Tables] = {
        source: {"pairs": run.pairs(source), "embeddings": run.embeddings(source)}
        for source in (*config.evaluation_sets, *config.seed_sets, *config.sources)
    }
    for source in config.sources:
        source_to_tables[source]["languages"] = run.languages(source)
    for source in (*config.evaluation_sets, *config.sources):
        for descriptor in config.selection.descriptors:
            tables = run.descriptions(source, descriptor)
            source_to_tables[source][descriptor] = tables
    return source_to_tables


def remove_outdated(run: RunFolder, changed: Iterable[Unit]) -> None:
    """Removes the tables of what shards held before, once those of now are there."""
    source_to_tables = _tables_by_source(run)
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
        self._source_to_tables = _tables_by_source(run)
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
                _count("units_changed", 1)
                return
            for measure, unit_tables in missing.items():
                unit_tables.write(unit.name, scores.table(measure))
                scores.count(measure, *self._source_to_counters[unit.source])
        else:
            _count("units_skipped", 1)
        yield unit

    def _score(
        self, unit: Unit, pair_tables: UnitTables, missing: Tables
    ) -> "_UnitScores":
        one_pass = self._plan(missing)
        if "pairs" in missing:
            measured = one_pass.over_shard(unit)
        else:
            pairs = from_table(pair_tables.read(unit.name), Pair)
            measured = one_pass.over_pairs(unit, pairs)
        scores = _UnitScores(self._handler, one_pass)
        for pair in measured:
            scores.add(pair)
        return scores

    def _plan(self, missing: Tables) -> "_Pass":
        """Loads a model only if a table needs it."""
        return _Pass(
            limits=self._limits,
            detector=self._model("languages") if "languages" in missing else None,
            encoder=self._model("embeddings") if "embeddings" in missing else None,
            describers={m: self._model(m) for m in missing if not isinstance(m, str)},
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


@dataclasses.dataclass(frozen=True)
class _Measured:
    """One pair and what a pass found of it."""

    pair: Pair
    language: Language  # unknown if it was not asked for
    pixels: np.ndarray | None  # for the encoder; None if unreadable or not asked for
    prepared: Mapping[Descriptor, np.ndarray]  # for describers; empty as above


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One pass over a shard; a model that is None has nothing to measure."""

    limits: Limits
    detector: language.Detector | None
    encoder: Encoder | None
    describers: Mapping[Descriptor, ImageDescriptor]

    def over_shard(self, unit: Unit) -> Iterator[_Measured]:
        """Measures all pairs of a shard."""
        raw_pairs = _told_of_left_out(unit, shards.read_pairs(unit, self.limits))
        return map_ahead(
            self._measure_raw, raw_pairs, self._n_ahead, lambda raw: len(raw.image)
        )

    def over_pairs(self, unit: Unit, pairs: Sequence[Pair]) -> Iterator[_Measured]:
        """Measures pairs that are known; reads their images only for a model."""
        if self.encoder is None and not self.describers:
            return (self._measured(pair, None) for pair in pairs)
        readable = [pair for pair in pairs if not pair.error]
        encoded = shards.read_images(unit, readable)
        items = ((pair, b"" if pair.error else next(encoded)) for pair in pairs)
        return map_ahead(
            self._measure_known, items, self._n_ahead, lambda item: len(item[1])
        )

    @property
    def _n_ahead(self) -> int:
        """While one batch is embedded the next one is decoded."""
        return _MIN_AHEAD + (self.encoder.batch_size if self.encoder else 0)

    def _measure_raw(self, raw: RawPair) -> _Measured:
        decoded, error = None, raw.error
        if not error:
            try:
                decoded = images.decode(raw.image, self.limits)
            except images.ImageError as failure:
                error = str(failure)
        return self._measured(_pair(raw, decoded, error), decoded)

    def _measure_known(self, item: tuple[Pair, bytes]) -> _Measured:
        pair, image = item
        decoded = None if pair.error else images.decode(image, self.limits)
        return self._measured(pair, decoded)

    def _measured(self, pair: Pair, decoded: images.Decoded | None) -> _Measured:
        found, pixels = language.UNKNOWN, None
        if self.detector and not pair.error:
            (found,) = self.detector.detect([pair.alt_text])
        if self.encoder and decoded:
            pixels = self.encoder.prepare_image(decoded.rgb)
        prepared = {
            descriptor: describer.prepare(decoded.rgb)
            for descriptor, describer in self.describers.items()
            if decoded
        }
        return _Measured(pair, found, pixels, prepared)


def _told_of_left_out(unit: Unit, raw_pairs: Iterator[RawPair]) -> Iterator[RawPair]:
    """Passes pairs on; counts and names members that no pair was made of."""
    n_left_out, first = 0, ""
    for raw in raw_pairs:
        n_left_out += len(raw.left_out)
        first = first or next(iter(raw.left_out), "")
        yield raw
    if n_left_out:
        _count("members_left_out", n_left_out)
        logging.warning(
            "%s: %d further members of keys left out, such as %r",
            *(unit.uri, n_left_out, first),
        )


def _pair(raw: RawPair, decoded: images.Decoded | None, error: str) -> Pair:
    height, width = decoded.rgb.shape[:2] if decoded else (0, 0)
    return Pair(
        sample_id=sample_id(raw.image, raw.alt_text),
        key=raw.key,
        url=raw.url,
        alt_text=raw.text,
        image_hash=content_hash(raw.image),
        image_format=decoded.format if decoded else "",
        width=width,
        height=height,
        n_bytes=len(raw.image),
        offset=raw.offset,
        error=error,
        robots=raw.robots,
        original_width=raw.original_width,
        original_height=raw.original_height,
    )


class _UnitScores:
    """Gathers the rows of one unit, and prepared pairs to batches."""

    def __init__(self, handler: EncoderHandler, one_pass: _Pass) -> None:
        self._handler = handler
        self._encoder = one_pass.encoder
        self._descriptions = {
            descriptor: DescriptorTable(describer)
            for descriptor, describer in one_pass.describers.items()
        }
        self._pairs: list[Pair] = []
        self._languages: list[Language] = []
        self._pending: list[tuple[int, PreparedPair]] = []
        self._row_to_embedded: dict[int, Embedded] = {}

    def add(self, measured: _Measured) -> None:
        if self._encoder and measured.pixels is not None:
            prepared = PreparedPair(measured.pixels, measured.pair.alt_text)
            self._pending.append((len(self._pairs), prepared))
            if len(self._pending) == self._encoder.batch_size:
                self._embed_pending()
        for descriptor, image in measured.prepared.items():
            self._descriptions[descriptor].add(len(self._pairs), image)
        self._pairs.append(measured.pair)
        self._languages.append(measured.language)

    def table(self, measure: Measure) -> pa.Table:
        """The table of one measure, of all rows that were added."""
        if measure == "pairs":
            return to_table(self._pairs, Pair)
        if measure == "languages":
            return to_table(self._languages, Language)
        if isinstance(measure, str):
            return self._embeddings()
        return self._descriptions[measure].table(len(self._pairs))

    def count(self, measure: Measure, all_rows: str, unreadable: str) -> None:
        """Adds the rows of one measure to its counters; two are named by the source."""
        readable = [pair for pair in self._pairs if not pair.error]
        if measure == "pairs":
            _count(all_rows, len(self._pairs))
            _count(unreadable, len(self._pairs) - len(readable))
        elif measure == "languages":
            _count("languages_detected", sum(bool(p.alt_text) for p in readable))
        elif measure == "embeddings":
            _count("images_encoded", len(readable))
            _count("texts_encoded", sum(bool(p.alt_text) for p in readable))
        else:
            _count("images_described", len(readable))

    def _embed_pending(self) -> None:
        if self._pending and self._encoder:
            rows, batch = zip(*self._pending, strict=True)
            embedded = self._handler.run_inference(batch, self._encoder)
            self._row_to_embedded.update(zip(rows, embedded, strict=True))
            self._pending = []

    def _embeddings(self) -> pa.Table:
        """float16 `embedding`, zeros for what is unreadable, and float32
        `alignment_score`, NaN where there is no image or no alt text."""
        assert self._encoder is not None  # it is loaded if this table is missing
        self._embed_pending()
        width = self._encoder.embedding_dim
        embeddings = np.zeros((len(self._pairs), width), np.float16)
        scores = np.full(len(self._pairs), math.nan, np.float32)
        for row, embedded in self._row_to_embedded.items():
            embeddings[row] = embedded.embedding
            scores[row] = embedded.alignment_score
        flat = pa.array(embeddings.ravel())
        column = pa.FixedSizeListArray.from_arrays(flat, width)
        return pa.table({"embedding": column, "alignment_score": scores})


def _count(name: str, n: int) -> None:
    Metrics.counter(STAGE, name).inc(n)
