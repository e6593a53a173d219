"""Captions the kept images, at any granularity.

In: lots with pairs and decisions. Out: for each lot and granularity tables of
captions of the kept images that had none, one a block of images, and the lots again.
An image is captioned once, and no model is loaded if no caption is missing.
"""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.utils.shared import Shared

from pipeline.captioning import failed_captions, imported
from pipeline.captioning.blocks import Block, PlanBlocks, Request
from pipeline.captioning.captioner_handler import (
    CaptionerHandler,
    CaptionTarget,
    PreparedImage,
    Rows,
    check_package,
    failed_row,
)
from pipeline.captioning.coverage import CaptionInputs
from pipeline.captioning.spending import Allowance, MeteredCaptioner, Receipt
from pipeline.config import prompts
from pipeline.config.captions import Decoding, Granularity, Spend
from pipeline.config.curation import Limits
from pipeline.config.fingerprint import to_json
from pipeline.config.prompts import prompt_hash
from pipeline.engine import error_tables
from pipeline.engine.caption_tables import STAGE as STAGE
from pipeline.engine.caption_tables import CaptionTables, Key, name_of
from pipeline.engine.counters import add_to_counter
from pipeline.engine.error_tables import Failure
from pipeline.engine.run_folder import RunFolder
from pipeline.engine.worker_checks import WorkerChecks
from pipeline.images import decoder as images
from pipeline.models.interfaces import Captioner, ServiceError
from pipeline.records import FinishReason, SyntheticCaption
from pipeline.sources import imported_captions, shards
from pipeline.sources.columns import ShardError
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.prefetch import map_ahead


def describe(run: RunFolder, granularity: Granularity) -> None:
    """Writes `granularity.json` beside the captions: what made them."""
    path = files.join(run.captions(granularity), "granularity.json")
    model: dict[str, Any] = {"model_digest": run.model_digest(granularity)}
    if granularity.captioner == "imported":
        model["files"] = imported_captions.describe(run.imported_files(granularity))
    content = {**to_json(granularity, fields_of=_recorded_fields), **model}
    if not files.is_file(path):
        files.write(path, json.dumps(content, indent=1).encode() + b"\n")


def _recorded_fields(settings: Any) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(settings) if field.repr]


class Caption(beam.PTransform):
    """Writes the missing captions of kept images, and passes the lots on.

    Counters: `captions_written`; `captions_failed`; `images_encoded`, and
    `caption_slots`, as many as would fill all batches; `captions_waiting`, whose prompt
    names a caption that failed; `requests` of captioners that cost money; and
    `lots_skipped`, which lack no caption. Each model counts images and lots again.
    """

    def __init__(
        self,
        run: RunFolder,
        granularities: Sequence[Granularity],
        make_handler: Callable[[Granularity], CaptionerHandler] = CaptionerHandler,
        *,
        name_to_allowance: Mapping[str, Allowance] = MappingProxyType({}),
    ) -> None:
        """Takes the allowances of granularities whose requests are counted."""
        super().__init__()
        self._root = run.root
        self._inputs = CaptionInputs.of(run)
        self._targets = [
            CaptionTarget(g, run.granularity_fingerprint(g), run.captions(g))
            for g in granularities
            if g.captioner != "imported"
        ]
        self._imports = {
            g.name: imported.ImportCaptions(run, g)
            for g in granularities
            if g.captioner == "imported" and not imported.is_complete(run, g)
        }
        self._make_handler = make_handler
        self._model_to_checks = {
            (g.checkpoint, g.revision): _worker_checks(run, g) for g in granularities
        }
        self._workers = run.config.caption_workers
        self._allowances = dict(name_to_allowance)

    def expand(self, lots: beam.PCollection) -> beam.PCollection:
        """Makes one pass over all lots per model, in the order of their prompts.

        A lot goes on to the next pass, whose prompts may name its captions, when all
        its blocks are done. Imports need no model and come first.
        """
        for name, import_captions in self._imports.items():
            lots = lots | f"Import {name}" >> import_captions
        lots = lots | "Distribute lots" >> beam.Reshuffle()
        for group in self._passes():
            names = " and ".join(target.granularity.name for target in group)
            caption = beam.ParDo(self._caption_block(group))
            lots = (
                lots
                | f"Plan {names}" >> beam.ParDo(PlanBlocks(self._inputs, group))
                | f"Distribute blocks of {names}" >> beam.Reshuffle()
                | f"Caption {names}"
                >> caption.with_resource_hints(**self._workers.hints)
                | f"Wait for {names}" >> beam.CombinePerKey(_any_of)
                | f"Go on after {names}" >> beam.Values()
            )
        return lots

    def _caption_block(self, group: tuple[CaptionTarget, ...]) -> "_CaptionBlock":
        model = _find_model(group)
        checks = self._model_to_checks[model.checkpoint, model.revision]
        allowances = {
            target.granularity.name: self._allowances[target.granularity.name]
            for target in group
            if target.granularity.name in self._allowances
        }
        handler = self._make_handler(model)
        return _CaptionBlock(
            self._root, self._inputs.limits, handler, checks, allowances
        )

    def _passes(self) -> list[tuple[CaptionTarget, ...]]:
        """The targets of each pass: of one model, after those that prompts name."""
        groups: dict[tuple, list[CaptionTarget]] = collections.defaultdict(list)
        for number, level in enumerate(prompts.levels(self._inputs.granularities)):
            for target in self._targets:
                if target.granularity in level:
                    model = _find_model([target])
                    key = dataclasses.replace(model, batch_size=1)
                    groups[number, key].append(target)
        return list(map(tuple, groups.values()))


def _worker_checks(run: RunFolder, granularity: Granularity) -> WorkerChecks:
    """What a worker checks before it captions; only models with weights have them."""
    has_weights = granularity.captioner in ("paligemma", "huggingface")
    checkpoint = granularity.checkpoint if has_weights else ""
    digest = run.model_digest(granularity)
    return WorkerChecks.of(checkpoint, digest, granularity.revision)


def _find_model(targets: Sequence[CaptionTarget]) -> Granularity:
    """The granularities' model: a granularity without prompt, name and decoding."""
    first = targets[0].granularity
    return dataclasses.replace(
        first,
        name="",
        prompt="",
        max_new_tokens=1,
        decoding=Decoding(),
        n_words=(0, 0),
        spend=Spend(),
        batch_size=min(one.granularity.batch_size for one in targets),
    )


def _any_of(lots: Iterable[Lot]) -> Lot:
    return next(iter(lots))


class _CaptionBlock(beam.DoFn):
    """Writes the captions of a block, and yields its lot by name."""

    def __init__(
        self,
        root: str,
        limits: Limits,
        handler: CaptionerHandler,
        checks: WorkerChecks,
        name_to_allowance: Mapping[str, Allowance],
    ) -> None:
        self._root = root
        self._limits = limits
        self._handler = handler
        self._checks = checks
        self._allowances = name_to_allowance
        self._shared = Shared()

    def setup(self) -> None:
        self._checks.at_start()
        check_package(self._handler.granularity)

    def process(self, block: Block) -> Iterator[tuple[str, Lot]]:
        if block.requests:
            self._write(block)
        yield block.lot.name, block.lot

    def _write(self, block: Block) -> None:
        key_to_rows: dict[tuple[str, Key], Rows] = {}
        receipts: dict[str, Receipt] = {}
        try:
            for target in block.targets:
                if allowance := self._allowances.get(target.granularity.name):
                    n = len(block.requests) * target.granularity.decoding.n_samples
                    receipt = allowance.reserve(block.lot.name, n)
                    receipts[target.granularity.name] = receipt
            for target, rows in self._rows(block, receipts):
                key = (rows[0].image_hash, rows[0].prompt_hash)
                key_to_rows[target.granularity.name, key] = rows
        except ServiceError:  # earlier answers are paid for
            _add(self._root, block, key_to_rows)
            raise
        finally:
            for receipt in receipts.values():
                receipt.settle()
                add_to_counter(STAGE, "requests", receipt.n_asked)
        _add(self._root, block, key_to_rows)

    def _rows(
        self, block: Block, name_to_receipt: Mapping[str, Receipt]
    ) -> Iterator[tuple[CaptionTarget, Rows]]:
        """Yields the rows of each image and target, batch by batch."""
        self._checks.before_load()
        captioner = self._shared.acquire(lambda: _load_alone(self._handler))
        if name_to_receipt:
            captioner = MeteredCaptioner(captioner, name_to_receipt)
        batch = []
        for request, image in self._prepare(block, captioner):
            image_hash, prompts = request.pair.image_hash, request.prompts
            if isinstance(image, ValueError):
                for one, prompt in zip(block.targets, prompts, strict=True):
                    yield one, (failed_row(image_hash, prompt, image),)
                continue
            batch.append(PreparedImage(image_hash, image, prompts))
            if len(batch) == captioner.batch_size:
                yield from self._caption(captioner, batch, block.targets)
                batch = []
        if batch:
            yield from self._caption(captioner, batch, block.targets)

    def _prepare(
        self, block: Block, captioner: Captioner
    ) -> Iterator[tuple[Request, np.ndarray | ValueError]]:
        """Decodes and prepares images, one batch ahead of the model."""

        def prepare(
            item: tuple[Request, bytes | ShardError],
        ) -> tuple[Request, np.ndarray | ValueError]:
            request, data = item
            if isinstance(data, ShardError):
                return request, data
            try:
                rgb = images.decode(data, self._limits).rgb
            except images.ImageError as error:
                return request, error
            return request, captioner.prepare_image(rgb)

        def n_bytes(item: tuple[Request, bytes | ShardError]) -> int:
            return len(item[1]) if isinstance(item[1], bytes) else 0

        pairs = [request.pair for request in block.requests]
        encoded = shards.find_images(block.lot, pairs)
        items = zip(block.requests, encoded, strict=True)
        return map_ahead(prepare, items, captioner.batch_size, n_bytes)

    def _caption(
        self,
        captioner: Captioner,
        batch: Sequence[PreparedImage],
        targets: tuple[CaptionTarget, ...],
    ) -> Iterator[tuple[CaptionTarget, Rows]]:
        """Yields the rows of all answers, then raises the first ServiceError."""
        add_to_counter(STAGE, "images_encoded", len(batch))
        add_to_counter(STAGE, "caption_slots", captioner.batch_size)
        errors = []
        for row in self._handler.run_inference(batch, captioner, {"targets": targets}):
            for one, answer in zip(targets, row, strict=True):
                if isinstance(answer, ServiceError):
                    errors.append(answer)
                else:
                    yield one, answer
        if errors:
            raise errors[0]


def _add(root: str, block: Block, key_to_rows: Mapping[tuple[str, Key], Rows]) -> None:
    """Writes the rows that were answered, in the order of the requests.

    Errors go first: what has rows of captions is not asked for again.
    """
    for number, target in enumerate(block.targets):
        name = target.granularity.name
        ordered: list[SyntheticCaption] = []
        failures = []
        for request in block.requests:
            key = (request.pair.image_hash, prompt_hash(request.prompts[number]))
            rows = key_to_rows.get((name, key), ())
            ordered += rows
            failures += [
                Failure.of(STAGE, block.lot, request.pair, ValueError(row.text))
                for row in rows
                if row.finish_reason == FinishReason.ERROR
            ]
        if failures:
            table = name_of(block.lot.base, ordered)
            prefix = failed_captions.error_prefix(target.folder)
            error_tables.write(root, STAGE, f"{prefix}{table}", failures)
        if ordered:
            CaptionTables.at(target.folder).add(block.lot.base, ordered)
        add_to_counter(STAGE, "captions_written", len(ordered) - len(failures))
        add_to_counter(STAGE, "captions_failed", len(failures))


class _NoModel:
    """Held by `Shared` while one model is freed for the next."""


def _load_alone(handler: CaptionerHandler) -> Captioner:
    Shared().acquire(_NoModel)
    return handler.load_model()
