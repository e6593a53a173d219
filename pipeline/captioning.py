"""Stage 3, caption: synthetic captions of the kept images, at any granularity.

In: units whose pairs and decisions are there. Out: for each unit and granularity a
table with captions of the kept images that had none, and the units again. What has a
caption is not captioned again, and no model is loaded if nothing is missing.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler
from apache_beam.utils.shared import Shared

from pipeline import files, images, sources
from pipeline.caption_tables import FAILED, CaptionTables
from pipeline.config import Granularity, Limits
from pipeline.models.captioners import Captioner, PaliGemmaCaptioner
from pipeline.records import KEPT, Pair, SyntheticCaption
from pipeline.run_folder import RunFolder
from pipeline.sources import Unit
from pipeline.threads import map_ahead

STAGE = "caption"


@dataclasses.dataclass(frozen=True)
class PreparedImage:
    """One image as the captioner wants it."""

    image_hash: bytes
    pixels: np.ndarray  # uint8 [s, s, 3]


class CaptionerHandler(
    ModelHandler[PreparedImage, tuple[SyntheticCaption, ...], Captioner]
):
    """A PaliGemma; `inference_args["granularities"]` says which captions to make."""

    def __init__(self, checkpoint: str, batch_size: int, dtype: str) -> None:
        super().__init__(max_batch_size=batch_size)
        self.checkpoint = checkpoint
        self.batch_size = batch_size
        self.dtype = dtype

    def load_model(self) -> Captioner:
        return PaliGemmaCaptioner.load(self.checkpoint, self.batch_size, self.dtype)

    def run_inference(
        self,
        batch: Sequence[PreparedImage],
        model: Captioner,
        inference_args: dict[str, Any] | None = None,
    ) -> list[tuple[SyntheticCaption, ...]]:
        """Captions of each image, one a granularity, from one pass of the tower.

        A ValueError costs no more than the captions that raise it: the batch is halved
        down to one caption, which becomes a row with the error. Any other exception is
        the machine's fault and not the image's, so it stops the unit.
        """
        granularities = (inference_args or {})["granularities"]
        try:
            return _captions(model, batch, granularities)
        except ValueError as error:
            if len(batch) == len(granularities) == 1:
                return [(_failed_row(batch[0].image_hash, error),)]
        if len(batch) > 1:
            half = len(batch) // 2
            return [
                *self.run_inference(batch[:half], model, inference_args),
                *self.run_inference(batch[half:], model, inference_args),
            ]
        one_by_one = [
            self.run_inference(batch, model, {"granularities": (granularity,)})
            for granularity in granularities
        ]
        return [tuple(caption for ((caption,),) in one_by_one)]


def _captions(
    captioner: Captioner,
    batch: Sequence[PreparedImage],
    granularities: Sequence[Granularity],
) -> list[tuple[SyntheticCaption, ...]]:
    features = captioner.encode(np.stack([image.pixels for image in batch]))
    columns = [
        captioner.caption(features, granularity.prompt, granularity.max_new_tokens)
        for granularity in granularities
    ]
    return [
        tuple(
            SyntheticCaption(
                image_hash=image.image_hash,
                sample_index=0,
                text=caption.text,
                n_tokens=caption.n_tokens,
                finish_reason=str(caption.finish_reason),
                mean_logprob=caption.mean_logprob,
            )
            for caption in captions
        )
        for image, *captions in zip(batch, *columns, strict=True)
    ]


def _failed_row(image_hash: bytes, error: ValueError) -> SyntheticCaption:
    return SyntheticCaption(
        image_hash=image_hash,
        sample_index=0,
        text=str(error),
        n_tokens=0,
        finish_reason=FAILED,
        mean_logprob=math.nan,
    )


class Caption(beam.PTransform):
    """Captions what the kept images of the units lack, and passes the units on.

    Counters: `captions_written`, `captions_failed`, `images_encoded`, and
    `units_skipped` of units that lack nothing (all once a model).
    """

    def __init__(
        self,
        run: RunFolder,
        granularities: Sequence[Granularity],
        make_handler: Callable[[str, int, str], CaptionerHandler] = CaptionerHandler,
    ) -> None:
        """`make_handler` gets a checkpoint, a batch size and a dtype."""
        super().__init__()
        self._inputs = _Inputs.of(run)
        self._granularities = tuple(granularities)
        self._folders = {g.name: run.captions(g) for g in granularities}
        self._make_handler = make_handler

    def expand(self, units: beam.PCollection) -> beam.PCollection:
        """One pass over all units a model; the shuffle lets one finish first."""
        for (checkpoint, dtype), group in self._model_to_granularities().items():
            batch_size = min(granularity.batch_size for granularity in group)
            handler = self._make_handler(checkpoint, batch_size, dtype)
            folders = {g: self._folders[g.name] for g in group}
            names = " and ".join(granularity.name for granularity in group)
            units = (
                units
                | f"Distribute units for {names}" >> beam.Reshuffle()
                | f"Caption {names}"
                >> beam.ParDo(_CaptionUnit(self._inputs, folders, handler))
            )
        return units

    def _model_to_granularities(self) -> dict[tuple[str, str], list[Granularity]]:
        groups: dict[tuple[str, str], list[Granularity]]
        groups = collections.defaultdict(list)
        for granularity in self._granularities:
            groups[granularity.checkpoint, granularity.dtype].append(granularity)
        return groups


def coverage(
    run: RunFolder, granularity: Granularity, units: Iterable[Unit]
) -> tuple[int, int]:
    """Numbers of kept pairs of the units with a caption, and of all kept pairs.

    Units without decisions have no kept pairs yet.
    """
    inputs, tables = _Inputs.of(run), CaptionTables.open(run.captions(granularity))
    decided = inputs.decisions.unit_names()
    n_captioned = n_kept = 0
    for unit in units:
        if unit.name in decided:
            captioned = tables.texts(unit.name).keys()
            hashes = [pair.image_hash for pair in inputs.kept_pairs(unit)]
            n_captioned += sum(image_hash in captioned for image_hash in hashes)
            n_kept += len(hashes)
    return n_captioned, n_kept


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """The tables of the stages before, small enough to travel to every worker."""

    source_to_pairs: Mapping[str, files.UnitTables]
    decisions: files.UnitTables
    limits: Limits

    @classmethod
    def of(cls, run: RunFolder) -> "_Inputs":
        source_to_pairs = {s.name: run.pairs(s) for s in run.config.sources}
        return cls(source_to_pairs, run.decisions, run.config.limits)

    def kept_pairs(self, unit: Unit) -> list[Pair]:
        outcomes = self.decisions.read(unit.name, ["outcome"])["outcome"]
        pairs = self.source_to_pairs[unit.source.name].read(unit.name)
        return files.from_table(pairs.filter(pc.equal(outcomes, KEPT)), Pair)


@dataclasses.dataclass(frozen=True)
class _Request:
    """A kept image and the granularities of which it has no caption."""

    pair: Pair
    granularities: tuple[Granularity, ...]


class _CaptionUnit(beam.DoFn):
    """Writes the captions that one model can add to a unit."""

    def __init__(
        self,
        inputs: _Inputs,
        granularity_to_folder: Mapping[Granularity, str],
        handler: CaptionerHandler,
    ) -> None:
        self._inputs = inputs
        self._granularity_to_folder = granularity_to_folder
        self._handler = handler
        self._shared = Shared()
        self._tables: dict[Granularity, CaptionTables] = {}

    def setup(self) -> None:
        self._tables = {
            granularity: CaptionTables.open(folder)
            for granularity, folder in self._granularity_to_folder.items()
        }

    def process(self, unit: Unit) -> Iterator[Unit]:
        requests = self._requests(unit)
        if requests:
            self._write(unit, requests)
        else:
            _count("units_skipped")
        yield unit

    def _requests(self, unit: Unit) -> list[_Request]:
        """In the order of the unit; an image that comes twice is asked for once."""
        done = {g: tables.image_hashes(unit.name) for g, tables in self._tables.items()}
        requests: dict[bytes, _Request] = {}
        for pair in self._inputs.kept_pairs(unit):
            missing = tuple(g for g in done if pair.image_hash not in done[g])
            if missing:
                requests.setdefault(pair.image_hash, _Request(pair, missing))
        return list(requests.values())

    def _write(self, unit: Unit, requests: Sequence[_Request]) -> None:
        hash_to_row: dict[Granularity, dict[bytes, SyntheticCaption]]
        hash_to_row = collections.defaultdict(dict)
        for granularity, row in self._rows(unit, requests):
            hash_to_row[granularity][row.image_hash] = row
        for granularity, rows in hash_to_row.items():
            hashes = [request.pair.image_hash for request in requests]
            ordered = [rows[image_hash] for image_hash in hashes if image_hash in rows]
            self._tables[granularity].add(unit.name, ordered)
            n_failed = sum(row.finish_reason == FAILED for row in ordered)
            _count("captions_written", len(ordered) - n_failed)
            _count("captions_failed", n_failed)

    def _rows(
        self, unit: Unit, requests: Sequence[_Request]
    ) -> Iterator[tuple[Granularity, SyntheticCaption]]:
        """Batches hold images that lack the same granularities, so that none is made
        for an image that has it."""
        captioner = self._shared.acquire(lambda: _load_alone(self._handler))
        waiting = collections.defaultdict(list)
        for request, image in self._prepared(unit, requests, captioner):
            wanted, image_hash = request.granularities, request.pair.image_hash
            if isinstance(image, images.ImageError):
                yield from ((g, _failed_row(image_hash, image)) for g in wanted)
                continue
            waiting[wanted].append(PreparedImage(image_hash, image))
            if len(waiting[wanted]) == self._handler.batch_size:
                yield from self._captioned(captioner, waiting.pop(wanted), wanted)
        for wanted, batch in waiting.items():
            yield from self._captioned(captioner, batch, wanted)

    def _prepared(
        self, unit: Unit, requests: Sequence[_Request], captioner: Captioner
    ) -> Iterator[tuple[_Request, np.ndarray | images.ImageError]]:
        """Works one batch ahead of the model."""

        def prepare(
            item: tuple[_Request, bytes],
        ) -> tuple[_Request, np.ndarray | images.ImageError]:
            request, data = item
            try:
                rgb = images.decode(data, self._inputs.limits).rgb
            except images.ImageError as error:
                return request, error
            return request, captioner.prepare_image(rgb)

        encoded = sources.read_images(unit, [request.pair for request in requests])
        items = zip(requests, encoded, strict=True)
        return map_ahead(prepare, items, self._handler.batch_size)

    def _captioned(
        self,
        captioner: Captioner,
        batch: Sequence[PreparedImage],
        granularities: tuple[Granularity, ...],
    ) -> Iterator[tuple[Granularity, SyntheticCaption]]:
        _count("images_encoded", len(batch))
        arguments = {"granularities": granularities}
        for row in self._handler.run_inference(batch, captioner, arguments):
            yield from zip(granularities, row, strict=True)


class _NoModel:
    """What `Shared` holds while one model makes room for the next."""


def _load_alone(handler: CaptionerHandler) -> Captioner:
    Shared().acquire(_NoModel)
    return handler.load_model()


def _count(name: str, n: int = 1) -> None:
    Metrics.counter(STAGE, name).inc(n)
