"""Joins the tables of kept pairs to training samples.

In: the tables of a lot and the bytes of its images. Out: `records.Sample`s in the
order of the lot, with images that every decoder reads as `score` did.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg

from pipeline.config.captions import Granularity
from pipeline.config.curation import ExportConfig, Limits
from pipeline.engine.caption_tables import CaptionTables, captions_of, texts_of
from pipeline.engine.run_folder import RunFolder
from pipeline.images import decoder as images
from pipeline.records import (
    KEPT,
    Decision,
    FlaggedCaption,
    Pair,
    Sample,
    SyntheticCaption,
)
from pipeline.sources.shards import Lot
from pipeline.storage.table_rows import TableRows, open_rows
from pipeline.storage.tables import (
    ROWS_PER_GROUP,
    LotTables,
    Row,
    from_table,
    schema_of,
)

_MAX_JPEG_SIDE_PX = 65_500  # of libjpeg


@dataclasses.dataclass(frozen=True, slots=True)
class KeptPair:
    """A kept pair as a sample, still without its image."""

    row: int  # in the tables of the lot
    pair: Pair
    sample: Sample


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a lot."""

    outcome_to_count: Mapping[str, int]
    kept: Sequence[KeptPair]


@dataclasses.dataclass(frozen=True)
class SampleTables:
    """The tables that samples are joined from."""

    source_to_pairs: Mapping[str, LotTables]
    source_to_embeddings: Mapping[str, LotTables]
    decisions: LotTables
    granularity_to_folder: Mapping[Granularity, str]
    flags: "DroppedFlags"

    @classmethod
    def of(cls, run: RunFolder) -> Self:
        """The tables of a run."""
        sources = run.config.sources
        granularities = sorted(run.config.granularities, key=lambda g: g.name)
        return cls(
            source_to_pairs={s.name: run.pairs(s) for s in sources},
            source_to_embeddings={s.name: run.embeddings(s) for s in sources},
            decisions=run.decisions,
            granularity_to_folder={g: run.captions(g) for g in granularities},
            flags=DroppedFlags.of(run),
        )

    def open_captions(self) -> dict[Granularity, CaptionTables]:
        """The tables of captions by granularity; lists one folder for each."""
        return {
            granularity: CaptionTables.open(folder)
            for granularity, folder in self.granularity_to_folder.items()
        }


@dataclasses.dataclass(frozen=True)
class DroppedFlags:
    """The flags that keep a caption out of the shards, and the tables of flags."""

    names: frozenset[str]
    granularities: tuple[str, ...]
    tables: LotTables | None  # None if no flag does, and then none is read

    @classmethod
    def of(cls, run: RunFolder) -> Self:
        """The flags that the recipe of a run drops."""
        names = frozenset(run.config.export.drop_caption_flags)
        granularities = tuple(g.name for g in run.config.granularities)
        return cls(names, granularities, run.flags if names else None)

    def read(self, lot: Lot) -> pa.Table:
        """The flags of all captions of a lot; empty if no flag keeps captions out."""
        if self.tables is None:
            return schema_of(FlaggedCaption).empty_table()
        return self.tables.read(lot.name)

    def without_dropped(
        self, samples: list[Sample], rows: Iterable[FlaggedCaption]
    ) -> list[Sample]:
        """The samples without the captions that are kept out."""
        if not self.names:
            return samples
        flagged: dict[tuple[bytes, str], dict[int, tuple[str, ...]]]
        flagged = collections.defaultdict(dict)
        for row in rows:
            flagged[row.sample_id, row.granularity][row.sample_index] = row.flags
        return [self._without(sample, flagged) for sample in samples]

    def _without(
        self,
        sample: Sample,
        flagged: Mapping[tuple[bytes, str], Mapping[int, tuple[str, ...]]],
    ) -> Sample:
        """Removes flagged captions, and granularities without any caption left."""
        left = {}
        for name, texts in sample.captions.items():
            index_to_flags = flagged[sample.sample_id, name]
            flags = [index_to_flags[index] for index in sorted(index_to_flags)]
            both = zip(texts, flags, strict=True)
            left[name] = tuple(text for text, f in both if self.names.isdisjoint(f))
        captions = {name: texts for name, texts in left.items() if texts}
        return dataclasses.replace(sample, captions=captions)

    def counts(self, flagged: pa.Table) -> dict[str, dict[str, int]]:
        """Counts the captions kept out by granularity: `captions`, and each flag."""
        names = ("captions", *sorted(self.names))
        found = {name: dict.fromkeys(names, 0) for name in self.granularities}
        columns = flagged.select(["granularity", "flags"])
        for batch in columns.to_batches(ROWS_PER_GROUP):
            for granularity, all_flags in zip(
                *map(pa.Array.to_pylist, batch), strict=True
            ):
                if flags := self.names.intersection(all_flags):
                    for name in ("captions", *flags):
                        found[granularity][name] += 1
        return found


class LotSamples:
    """The kept pairs of a lot as samples without images, read by numbers of rows.

    In memory are the captions of the lot as they are stored, and the samples of one
    group of rows. A sample lacks the granularities of which its image has no caption.
    """

    def __init__(
        self,
        tables: SampleTables,
        captions: Mapping[Granularity, CaptionTables],
        lot: Lot,
    ) -> None:
        self._tables = tables
        self._lot = lot
        self._captions = {g: found.read(lot) for g, found in captions.items()}
        self._flagged = tables.flags.read(lot)

    def count_dropped(self) -> dict[str, dict[str, int]]:
        """Counts the captions of the lot that are kept out."""
        return self._tables.flags.counts(self._flagged)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator["Chunk"]:
        """Yields rows `start` to `stop` of the lot, a group of rows at a time."""
        tables, source = self._tables, self._lot.source.name
        to_open = (
            (tables.decisions, None),
            (tables.source_to_pairs[source], None),
            (tables.source_to_embeddings[source], ["alignment_score"]),
        )
        with contextlib.ExitStack() as stack:
            opened = [
                stack.enter_context(open_rows(each.path(self._lot.name), columns))
                for each, columns in to_open
            ]
            stop = opened[0].n_rows if stop is None else stop
            while start < stop:
                end = min((start // ROWS_PER_GROUP + 1) * ROWS_PER_GROUP, stop)
                yield self._read(start, end, opened)
                start = end

    def _read(self, start: int, stop: int, opened: Sequence[TableRows]) -> "Chunk":
        decided, *others = opened
        decisions = decided.read(start, stop)
        outcomes = decisions["outcome"]
        is_kept = pc.equal(outcomes, KEPT)
        kept_rows = np.flatnonzero(is_kept.to_numpy())
        kept: list[KeptPair] = []
        if len(kept_rows):
            pairs, scores = (rows.read(start, stop).filter(is_kept) for rows in others)
            kept_pairs = from_table(pairs, Pair)
            samples = self._samples(
                kept_pairs,
                from_table(decisions.filter(is_kept), Decision),
                scores["alignment_score"].to_pylist(),
            )
            rows = (start + kept_rows).tolist()
            kept = list(map(KeptPair, rows, kept_pairs, samples))
        counts = {
            one["values"]: one["counts"] for one in outcomes.value_counts().to_pylist()
        }
        return Chunk(counts, kept)

    def _samples(
        self,
        pairs: Sequence[Pair],
        decisions: Sequence[Decision],
        scores: Sequence[float],
    ) -> list[Sample]:
        """The samples of some kept pairs, without captions that are kept out."""
        captions = self._captions_of(pairs)
        samples = [
            Sample(
                sample_id=pair.sample_id,
                image=b"",
                image_format=pair.image_format,
                width=pair.width,
                height=pair.height,
                alt_text=pair.alt_text,
                captions=name_to_captions,
                alignment_score=score,
                source=self._lot.source.name,
                seeds=decision.seeds,
            )
            for pair, decision, score, name_to_captions in zip(
                pairs, decisions, scores, captions, strict=True
            )
        ]
        ids = [pair.sample_id for pair in pairs]
        flagged = _rows_with(self._flagged, "sample_id", ids, FlaggedCaption)
        return self._tables.flags.without_dropped(samples, flagged)

    def _captions_of(self, pairs: Sequence[Pair]) -> list[dict[str, tuple[str, ...]]]:
        hashes = [pair.image_hash for pair in pairs]
        name_to_texts = {
            g.name: texts_of(_rows_with(table, "image_hash", hashes, SyntheticCaption))
            for g, table in self._captions.items()
        }
        return captions_of(pairs, list(self._captions), name_to_texts)


def _rows_with(
    table: pa.Table, column: str, values: Sequence[bytes], row_type: type[Row]
) -> list[Row]:
    """The rows of a table that have one of some values, in its order."""
    wanted = pa.array(values, pa.binary())
    return from_table(table.filter(pc.is_in(table[column], wanted)), row_type)


def with_image(
    sample: Sample, data: bytes, export: ExportConfig, limits: Limits
) -> Sample:
    """The sample with its image, resized if the short side is over `max_side_px`.

    An image that is not resized keeps its bytes, except for parts that some decoders
    misread (see `ImageFile.plain_bytes`). An image that decoders disagree on is stored
    as it was scored: upright, in sRGB, on white.
    """
    opened = images.open_image(data, limits)
    scale = export.max_side_px / min(sample.width, sample.height)
    plain = opened.plain_bytes() if scale >= 1 else None
    if plain is not None:
        return dataclasses.replace(sample, image=plain)
    rgb = opened.decode()
    if scale < 1:
        size_px = (round(sample.width * scale), round(sample.height * scale))
        rgb = cv2.resize(rgb, size_px, interpolation=cv2.INTER_AREA)
    image, image_format = _encode(rgb, export.jpeg_quality)
    height, width, _ = rgb.shape
    return dataclasses.replace(
        sample, image=image, image_format=image_format, width=width, height=height
    )


def _encode(rgb: np.ndarray, jpeg_quality: int) -> tuple[bytes, str]:
    """A JPEG, or a PNG where a side is longer than a JPEG's may be."""
    if max(rgb.shape) > _MAX_JPEG_SIDE_PX:
        _, png = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        return png.tobytes(), "png"
    rgb = np.ascontiguousarray(rgb)
    return simplejpeg.encode_jpeg(rgb, jpeg_quality, colorsubsampling="420"), "jpeg"
