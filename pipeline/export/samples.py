"""Joins the tables of kept pairs to training samples.

In: the tables of a unit and the bytes of its images. Out: `records.Sample`s in the
order of the unit, with images that every decoder reads as `score` did.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import cv2
import numpy as np
import simplejpeg

from pipeline.config.captions import Granularity
from pipeline.config.curation import ExportConfig, Limits
from pipeline.engine.caption_tables import CaptionTables, captions_of
from pipeline.engine.run_folder import RunFolder
from pipeline.images import decoder as images
from pipeline.records import KEPT, Decision, FlaggedCaption, Pair, Sample
from pipeline.sources.shards import Unit
from pipeline.storage.tables import UnitTables, from_table

_MAX_JPEG_SIDE_PX = 65_500  # of libjpeg

DecidedPair = tuple[Pair, Decision, float]  # with the alignment score


@dataclasses.dataclass(frozen=True)
class SampleTables:
    """The tables that samples are joined from."""

    source_to_pairs: Mapping[str, UnitTables]
    source_to_embeddings: Mapping[str, UnitTables]
    decisions: UnitTables
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

    def decided_pairs(self, unit: Unit) -> list[DecidedPair]:
        """All pairs of a unit with their decisions, in the order of the unit."""
        pairs = self.source_to_pairs[unit.source.name].read(unit.name)
        embeddings = self.source_to_embeddings[unit.source.name]
        scores = embeddings.read(unit.name, ["alignment_score"])
        rows = zip(
            from_table(pairs, Pair),
            from_table(self.decisions.read(unit.name), Decision),
            scores["alignment_score"].to_pylist(),
            strict=True,
        )
        return list(rows)


@dataclasses.dataclass(frozen=True)
class DroppedFlags:
    """The flags that keep a caption out of the shards, and the tables of flags."""

    names: frozenset[str]
    granularities: tuple[str, ...]
    tables: UnitTables | None  # None if no flag does, and then none is read

    @classmethod
    def of(cls, run: RunFolder) -> Self:
        """The flags that the recipe of a run drops."""
        names = frozenset(run.config.export.drop_caption_flags)
        granularities = tuple(g.name for g in run.config.granularities)
        return cls(names, granularities, run.flags if names else None)

    def read(self, unit: Unit) -> list[FlaggedCaption]:
        """The flags of all captions of a unit; empty if no flag keeps captions out."""
        if self.tables is None:
            return []
        return from_table(self.tables.read(unit.name), FlaggedCaption)

    def without_dropped(
        self, kept: list[tuple[Pair, Sample]], rows: Iterable[FlaggedCaption]
    ) -> list[tuple[Pair, Sample]]:
        """The kept samples of a unit, without the captions that are kept out."""
        if not self.names:
            return kept
        flagged: dict[tuple[bytes, str], dict[int, tuple[str, ...]]]
        flagged = collections.defaultdict(dict)
        for row in rows:
            flagged[row.sample_id, row.granularity][row.sample_index] = row.flags
        return [(pair, self._without(sample, flagged)) for pair, sample in kept]

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

    def counts(self, rows: Iterable[FlaggedCaption]) -> dict[str, dict[str, int]]:
        """Counts the captions kept out by granularity: `captions`, and each flag."""
        names = ("captions", *sorted(self.names))
        found = {name: dict.fromkeys(names, 0) for name in self.granularities}
        for row in rows:
            if flags := self.names.intersection(row.flags):
                for name in ("captions", *flags):
                    found[row.granularity][name] += 1
        return found


def kept_samples(
    unit: Unit,
    decided_pairs: Sequence[DecidedPair],
    tables: Mapping[Granularity, CaptionTables],
) -> list[tuple[Pair, Sample]]:
    """The kept pairs as samples without images.

    A sample lacks the granularities of which its image has no caption.
    """
    kept = [row for row in decided_pairs if row[1].outcome == KEPT]
    name_to_texts = {g.name: captions.texts(unit) for g, captions in tables.items()}
    captions = captions_of([pair for pair, _, _ in kept], list(tables), name_to_texts)
    return [
        (
            pair,
            Sample(
                sample_id=pair.sample_id,
                image=b"",
                image_format=pair.image_format,
                width=pair.width,
                height=pair.height,
                alt_text=pair.alt_text,
                captions=name_to_captions,
                alignment_score=alignment_score,
                source=unit.source.name,
                seeds=decision.seeds,
            ),
        )
        for (pair, decision, alignment_score), name_to_captions in zip(
            kept, captions, strict=True
        )
    ]


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
