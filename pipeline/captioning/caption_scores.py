"""Measures synthetic captions: their language and their alignment score.

In: lots with captions. Out: for each table of captions a table of each measure, with
the same rows. Tables of captions never change, and so neither do these: models run on
new captions alone, and a new threshold runs no model.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler
from apache_beam.utils.shared import Shared

from pipeline.config.captions import Granularity
from pipeline.config.curation import EncoderConfig
from pipeline.engine.caption_tables import CaptionTables, Key
from pipeline.engine.counters import add_to_counter
from pipeline.engine.run_folder import RunFolder
from pipeline.models import language
from pipeline.models.interfaces import Encoder
from pipeline.records import FinishReason, Language, SyntheticCaption
from pipeline.sources.shards import Lot
from pipeline.storage.tables import LotTables, from_table, from_vector_column, to_table

STAGE = "flag"


class TextEncoderHandler(ModelHandler[str, np.ndarray, Encoder]):
    """The text side of a recipe's encoder: texts to unit vectors, float32 [n, d]."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(max_batch_size=config.batch_size)
        self.config = config

    def load_model(self) -> Encoder:
        from pipeline.models import encoders  # JAX takes seconds

        return encoders.load_encoder(self.config)

    def run_inference(
        self,
        batch: Sequence[str],
        model: Encoder,
        inference_args: dict | None = None,
    ) -> np.ndarray:
        return model.encode_texts(batch)


@dataclasses.dataclass(frozen=True)
class ScoredCaption:
    """A caption with its measures."""

    row: SyntheticCaption
    language: Language
    alignment_score: float | None  # cosine; None if it is not measured


@dataclasses.dataclass(frozen=True)
class CaptionScores:
    """The tables of captions of one granularity, and of their measures."""

    granularity: Granularity
    folder: str
    languages: LotTables
    source_to_alignment: Mapping[str, LotTables]  # empty if it is not measured

    @classmethod
    def of(cls, run: RunFolder, granularity: Granularity) -> Self:
        """The tables of a granularity of a run."""
        is_measured = run.config.caption_quality.measure_alignment
        return cls(
            granularity=granularity,
            folder=run.captions(granularity),
            languages=run.caption_languages(granularity),
            source_to_alignment={
                source.name: run.caption_alignment(source, granularity)
                for source in run.config.sources
                if is_measured
            },
        )

    def by_key(
        self, lot: Lot, captions: CaptionTables
    ) -> dict[Key, list[ScoredCaption]]:
        """The captions of each image and prompt, by sample; without failed ones."""
        found: dict[Key, dict[int, ScoredCaption]] = collections.defaultdict(dict)
        for name in captions.names(lot):
            for scored in self._scored(lot, captions, name):
                row = scored.row
                if row.finish_reason != FinishReason.ERROR:
                    key = (row.image_hash, row.prompt_hash)
                    found[key][row.sample_index] = scored
        return {
            key: [index_to_scored[i] for i in sorted(index_to_scored)]
            for key, index_to_scored in found.items()
        }

    def _scored(
        self, lot: Lot, captions: CaptionTables, name: str
    ) -> Iterator[ScoredCaption]:
        rows = from_table(captions.tables.read(name), SyntheticCaption)
        languages = from_table(self.languages.read(name), Language)
        alignment = self.source_to_alignment.get(lot.source.name)
        scores = [None] * len(rows)
        if alignment is not None:
            scores = alignment.read(name)["alignment_score"].to_pylist()
        return map(ScoredCaption, rows, languages, scores)


class MeasureCaptions(beam.DoFn):
    """Writes the missing measures of captions of a lot, and passes the lot on.

    Counters: `texts_detected` and `texts_encoded`.
    """

    def __init__(
        self,
        run: RunFolder,
        scores: Sequence[CaptionScores],
        encoder_handler: TextEncoderHandler,
    ) -> None:
        self._images = _Images.of(run)
        self._scores = scores
        self._detector_name = run.config.language_detector
        self._handler = encoder_handler
        self._shared_encoder, self._shared_detector = Shared(), Shared()
        # `Shared` holds weak references; these keep the models while the DoFn lives.
        self._encoder: Encoder | None = None
        self._detector: language.Detector | None = None
        self._captions: dict[Granularity, CaptionTables] = {}

    def setup(self) -> None:
        self._captions = {
            scores.granularity: CaptionTables.open(scores.folder)
            for scores in self._scores
        }

    def process(self, lot: Lot) -> Iterator[Lot]:
        for scores in self._scores:
            captions = self._captions[scores.granularity]
            for name in _find_missing(scores.languages, captions.names(lot)):
                self._write_languages(scores.languages, captions, name)
            alignment = scores.source_to_alignment.get(lot.source.name)
            if alignment is not None:
                for name in _find_missing(alignment, captions.names(lot)):
                    self._write_alignment(lot, alignment, captions, name)
        yield lot

    def _write_languages(
        self, languages: LotTables, captions: CaptionTables, name: str
    ) -> None:
        """Writes the languages of a table; a failed caption has none."""
        load = functools.partial(language.detector, self._detector_name)
        self._detector = self._shared_detector.acquire(load)
        rows = from_table(captions.tables.read(name), SyntheticCaption)
        found = [language.UNKNOWN] * len(rows)
        numbers = _find_captions(rows)
        texts = [rows[number].text for number in numbers]
        for number, answer in zip(numbers, self._detector.detect(texts), strict=True):
            found[number] = answer
        languages.write(name, to_table(found, Language))
        add_to_counter(STAGE, "texts_detected", len(texts))

    def _write_alignment(
        self,
        lot: Lot,
        alignment: LotTables,
        captions: CaptionTables,
        name: str,
    ) -> None:
        """Writes the cosines of a table, float32; NaN for a failed caption."""
        self._encoder = self._shared_encoder.acquire(self._handler.load_model)
        rows = from_table(captions.tables.read(name), SyntheticCaption)
        scores = np.full(len(rows), np.nan, np.float32)
        numbers = _find_captions(rows)
        if numbers:
            texts = [rows[number].text for number in numbers]
            embedded = self._handler.run_inference(texts, self._encoder)
            hashes = [rows[number].image_hash for number in numbers]
            scores[numbers] = (self._images.embeddings(lot, hashes) * embedded).sum(1)
        alignment.write(name, pa.table({"alignment_score": scores}))
        add_to_counter(STAGE, "texts_encoded", len(numbers))


@dataclasses.dataclass(frozen=True)
class _Images:
    """The image embeddings that `score` wrote."""

    source_to_pairs: Mapping[str, LotTables]
    source_to_embeddings: Mapping[str, LotTables]

    @classmethod
    def of(cls, run: RunFolder) -> Self:
        return cls(
            {source.name: run.pairs(source) for source in run.config.sources},
            {source.name: run.embeddings(source) for source in run.config.sources},
        )

    def embeddings(self, lot: Lot, image_hashes: Iterable[bytes]) -> np.ndarray:
        """Embeddings, float32 `[n, d]`; NaN if the shard no longer holds the image."""
        pairs = self.source_to_pairs[lot.source.name]
        hashes = pairs.read(lot.name, ["image_hash"])["image_hash"].to_pylist()
        hash_to_row = {image_hash: row for row, image_hash in enumerate(hashes)}
        table = self.source_to_embeddings[lot.source.name].read(lot.name, ["embedding"])
        vectors = from_vector_column(table["embedding"].combine_chunks())
        absent = np.full((1, vectors.shape[1]), np.nan, np.float32)
        vectors = np.concatenate([vectors, absent])
        rows = [hash_to_row.get(image_hash, -1) for image_hash in image_hashes]
        return vectors[rows].astype(np.float32)


def _find_missing(tables: LotTables, names: Iterable[str]) -> list[str]:
    return [name for name in names if not tables.has(name)]


def _find_captions(rows: Sequence[SyntheticCaption]) -> list[int]:
    """The numbers of the rows that hold a caption, not an error."""
    is_caption = [row.finish_reason != FinishReason.ERROR for row in rows]
    return np.flatnonzero(is_caption).tolist()
