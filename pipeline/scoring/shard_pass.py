"""One pass over a shard: reads each pair once and measures what is asked for.

In: a shard and the models whose tables are missing. Out: rows of those tables.
"""

import dataclasses
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures

import numpy as np
import pyarrow as pa

from pipeline.config.curation import Limits
from pipeline.config.duplicates import Descriptor
from pipeline.engine.counters import add_to_counter
from pipeline.engine.removals import RemovedNames
from pipeline.images import decoder as images
from pipeline.models import language
from pipeline.models.descriptors import DescriptorTable, ImageDescriptor
from pipeline.models.interfaces import Encoder
from pipeline.records import Language, Pair, content_hash, sample_id
from pipeline.scoring.encoder_handler import Embedded, EncoderHandler, PreparedPair
from pipeline.scoring.missing_tables import Measure
from pipeline.sources import shards
from pipeline.sources.shards import RawPair, Shard
from pipeline.storage.prefetch import map_ahead
from pipeline.storage.tables import to_table, to_vector_column

STAGE = "score"

_MIN_AHEAD = 64  # pairs in work besides one batch: enough for all cores


@dataclasses.dataclass(frozen=True)
class MeasuredPair:
    """One pair and what a pass found of it."""

    pair: Pair
    language: Language  # unknown if it was not asked for
    pixels: np.ndarray | None  # for the encoder; None if unreadable or not asked for
    prepared: Mapping[Descriptor, np.ndarray]  # likewise; {} if none


@dataclasses.dataclass(frozen=True)
class ShardPass:
    """One pass over a shard; a model that is None has nothing to measure."""

    limits: Limits
    detector: language.Detector | None
    encoder: Encoder | None
    image_descriptors: Mapping[Descriptor, ImageDescriptor]
    removed: RemovedNames

    def over_shard(self, shard: Shard, start: int) -> Iterator[MeasuredPair]:
        """Measures the pairs of a shard that were not removed from the run, from the
        `start`-th of them on."""
        raw_pairs = _report_left_out(shard, shards.read_pairs(shard, self.limits))
        if self.removed.kinds:
            raw_pairs = filter(self._is_left, raw_pairs)
        rest = itertools.islice(raw_pairs, start, None)
        return map_ahead(
            self._measure_raw, rest, self._n_ahead, lambda raw: len(raw.image)
        )

    def over_pairs(self, shard: Shard, pairs: Sequence[Pair]) -> Iterator[MeasuredPair]:
        """Measures pairs that are known; reads their images only for a model."""
        if self.encoder is None and not self.image_descriptors:
            return (self._measure(pair, None) for pair in pairs)
        readable = [pair for pair in pairs if not pair.error]
        encoded = shards.read_shard_images(shard, readable)
        items = ((pair, b"" if pair.error else next(encoded)) for pair in pairs)
        return map_ahead(
            self._measure_known, items, self._n_ahead, lambda item: len(item[1])
        )

    def _is_left(self, raw: RawPair) -> bool:
        """Whether a pair was not removed from the run; counts those that were."""
        named = {
            "url": raw.url,
            "image_hash": content_hash(raw.image),
            "sample_id": sample_id(raw.image, raw.alt_text),
        }
        is_removed = self.removed.matches(pa.table({k: [v] for k, v in named.items()}))
        if is_removed[0]:
            add_to_counter(STAGE, "pairs_removed", 1)
        return not is_removed[0]

    @property
    def _n_ahead(self) -> int:
        """While one batch is embedded the next one is decoded."""
        return _MIN_AHEAD + (self.encoder.batch_size if self.encoder else 0)

    def _measure_raw(self, raw: RawPair) -> MeasuredPair:
        decoded, error = None, raw.error
        if not error:
            try:
                decoded = images.decode(raw.image, self.limits)
            except images.ImageError as failure:
                error = str(failure)
        return self._measure(_make_pair(raw, decoded, error), decoded)

    def _measure_known(self, item: tuple[Pair, bytes]) -> MeasuredPair:
        pair, image = item
        decoded = None if pair.error else images.decode(image, self.limits)
        return self._measure(pair, decoded)

    def _measure(self, pair: Pair, decoded: images.Decoded | None) -> MeasuredPair:
        found, pixels = language.UNKNOWN, None
        if self.detector and not pair.error:
            (found,) = self.detector.detect([pair.alt_text])
        if self.encoder and decoded:
            pixels = self.encoder.prepare_image(decoded.rgb)
        prepared = {
            descriptor: image_descriptor.prepare(decoded.rgb)
            for descriptor, image_descriptor in self.image_descriptors.items()
            if decoded
        }
        return MeasuredPair(pair, found, pixels, prepared)


def _report_left_out(shard: Shard, raw_pairs: Iterator[RawPair]) -> Iterator[RawPair]:
    """Passes pairs on; counts and names members that no pair was made of."""
    n_left_out, first = 0, ""
    for raw in raw_pairs:
        n_left_out += len(raw.left_out)
        first = first or next(iter(raw.left_out), "")
        yield raw
    if n_left_out:
        add_to_counter(STAGE, "members_left_out", n_left_out)
        logging.warning(
            "%s: %d further members of keys left out, such as %r",
            *(shard.uri, n_left_out, first),
        )


def _make_pair(raw: RawPair, decoded: images.Decoded | None, error: str) -> Pair:
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


class ShardScores:
    """Gathers the rows of one part of a shard, and prepared pairs to batches.

    While a batch is embedded in a thread of its own, the next one is put together.
    """

    def __init__(self, handler: EncoderHandler, one_pass: ShardPass) -> None:
        self._handler = handler
        self._encoder = one_pass.encoder
        self._descriptor_tables = {
            descriptor: DescriptorTable(image_descriptor)
            for descriptor, image_descriptor in one_pass.image_descriptors.items()
        }
        self._pairs: list[Pair] = []
        self._languages: list[Language] = []
        self._pending: list[tuple[int, PreparedPair]] = []
        self._row_to_embedded: dict[int, Embedded] = {}
        self._embedding_thread = futures.ThreadPoolExecutor(1)
        self._in_work: tuple[Sequence[int], futures.Future[list[Embedded]]] | None
        self._in_work = None

    def add(self, measured: MeasuredPair) -> None:
        if self._encoder and measured.pixels is not None:
            prepared = PreparedPair(measured.pixels, measured.pair.alt_text)
            self._pending.append((len(self._pairs), prepared))
            if len(self._pending) == self._encoder.batch_size:
                self._embed_pending()
        for descriptor, image in measured.prepared.items():
            self._descriptor_tables[descriptor].add(len(self._pairs), image)
        self._pairs.append(measured.pair)
        self._languages.append(measured.language)

    @property
    def n_pairs(self) -> int:
        """The pairs that were added."""
        return len(self._pairs)

    @property
    def n_unreadable(self) -> int:
        """How many of them have an error."""
        return sum(bool(pair.error) for pair in self._pairs)

    @property
    def is_between_batches(self) -> bool:
        """Whether no batch is begun: a part that ends here changes no batch."""
        tables = self._descriptor_tables.values()
        return not self._pending and not any(table.is_waiting for table in tables)

    def table(self, measure: Measure) -> pa.Table:
        """The table of one measure, of all rows that were added."""
        if measure == "pairs":
            return to_table(self._pairs, Pair)
        if measure == "languages":
            return to_table(self._languages, Language)
        if isinstance(measure, str):
            return self._embeddings()
        return self._descriptor_tables[measure].table(len(self._pairs))

    def count(self, measure: Measure, all_rows: str, unreadable: str) -> None:
        """Adds the rows of one measure to its counters; two are named by the source."""
        readable = [pair for pair in self._pairs if not pair.error]
        if measure == "pairs":
            add_to_counter(STAGE, all_rows, len(self._pairs))
            add_to_counter(STAGE, unreadable, len(self._pairs) - len(readable))
        elif measure == "languages":
            add_to_counter(
                STAGE, "languages_detected", sum(bool(p.alt_text) for p in readable)
            )
        elif measure == "embeddings":
            add_to_counter(STAGE, "images_encoded", len(readable))
            n_texts = sum(bool(pair.alt_text) for pair in readable)
            add_to_counter(STAGE, "texts_encoded", n_texts)
        else:
            add_to_counter(STAGE, "images_described", len(readable))

    def _embed_pending(self) -> None:
        """Begins to embed a batch, once the batch before it is done."""
        if self._pending and self._encoder:
            self._wait_for_batch()
            rows, batch = zip(*self._pending, strict=True)
            embed = self._handler.run_inference
            future = self._embedding_thread.submit(embed, batch, self._encoder)
            self._pending, self._in_work = [], (rows, future)

    def _wait_for_batch(self) -> None:
        if self._in_work:
            rows, future = self._in_work
            self._row_to_embedded.update(zip(rows, future.result(), strict=True))
            self._in_work = None

    def _embeddings(self) -> pa.Table:
        """float16 `embedding`, zeros for what is unreadable, and float32
        `alignment_score`, NaN where there is no image or no alt text."""
        assert self._encoder is not None  # it is loaded if this table is missing
        self._embed_pending()
        self._wait_for_batch()
        width = self._encoder.embedding_dim
        embeddings = np.zeros((len(self._pairs), width), np.float16)
        scores = np.full(len(self._pairs), math.nan, np.float32)
        for row, embedded in self._row_to_embedded.items():
            embeddings[row] = embedded.embedding
            scores[row] = embedded.alignment_score
        column = to_vector_column(embeddings)
        return pa.table({"embedding": column, "alignment_score": scores})
