"""Captions the kept images, at any granularity.

In: units with pairs and decisions. Out: for each unit and granularity a table of
captions of the kept images that had none, and the units again. An image is captioned
once, and no model is loaded if no caption is missing.
"""

import collections
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.utils.shared import Shared

from pipeline.captioning import imported
from pipeline.captioning.captioner_handler import (
    CaptionerHandler,
    CaptionTarget,
    PreparedImage,
    Rows,
    check_package,
    failed_row,
)
from pipeline.captioning.coverage import CaptionInputs
from pipeline.captioning.missing import find_missing
from pipeline.captioning.spending import Allowance, MeteredCaptioner, Receipt
from pipeline.config import prompts
from pipeline.config.captions import Decoding, Granularity, Spend
from pipeline.config.fingerprint import to_json
from pipeline.config.prompts import prompt_hash
from pipeline.engine.caption_tables import STAGE as STAGE
from pipeline.engine.caption_tables import CaptionTables, Key
from pipeline.engine.counters import add_to_counter
from pipeline.engine.run_folder import RunFolder
from pipeline.engine.worker_checks import WorkerChecks
from pipeline.images import decoder as images
from pipeline.models.interfaces import Captioner, ServiceError
from pipeline.records import FinishReason, Pair
from pipeline.sources import imported_captions, shards
from pipeline.sources.shards import Unit
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
    """Writes the missing captions of kept images, and passes the units on.

    Counters: `captions_written`; `captions_failed`; `images_encoded`;
    `captions_waiting`, whose prompt names a caption that failed; `requests` of
    captioners that cost money; and `units_skipped`, which lack no caption. Each model
    counts images and units again.
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

    def expand(self, units: beam.PCollection) -> beam.PCollection:
        """Makes one pass over all units per model, in the order of their prompts.

        A shuffle ends each pass before the next, whose prompts may name its captions.
        Imports need no model and come first.
        """
        for name, import_captions in self._imports.items():
            units = units | f"Import {name}" >> import_captions
        for group in self._passes():
            names = " and ".join(target.granularity.name for target in group)
            caption = beam.ParDo(self._caption_unit(group))
            units = (
                units
                | f"Distribute units for {names}" >> beam.Reshuffle()
                | f"Caption {names}"
                >> caption.with_resource_hints(**self._workers.hints)
            )
        return units

    def _caption_unit(self, group: tuple[CaptionTarget, ...]) -> "_CaptionUnit":
        model = _find_model(group)
        checks = self._model_to_checks[model.checkpoint, model.revision]
        allowances = {
            target.granularity.name: self._allowances[target.granularity.name]
            for target in group
            if target.granularity.name in self._allowances
        }
        handler = self._make_handler(model)
        return _CaptionUnit(self._inputs, group, handler, checks, allowances)

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


@dataclasses.dataclass(frozen=True)
class _Request:
    """A kept image, and the targets and prompts of its missing captions."""

    pair: Pair
    targets: tuple[CaptionTarget, ...]
    prompts: tuple[str, ...]  # one per target


class _CaptionUnit(beam.DoFn):
    """Writes the missing captions of a unit that one model makes."""

    def __init__(
        self,
        inputs: CaptionInputs,
        targets: Sequence[CaptionTarget],
        handler: CaptionerHandler,
        checks: WorkerChecks,
        name_to_allowance: Mapping[str, Allowance],
    ) -> None:
        self._inputs = inputs
        self._targets = targets
        self._handler = handler
        self._checks = checks
        self._allowances = name_to_allowance
        self._shared = Shared()
        self._tables: dict[str, CaptionTables] = {}

    def setup(self) -> None:
        self._checks.at_start()
        check_package(self._handler.granularity)
        self._tables = self._inputs.open_captions()

    def process(self, unit: Unit) -> Iterator[Unit]:
        requests = self._requests(unit)
        if requests:
            self._write(unit, requests)
        else:
            add_to_counter(STAGE, "units_skipped")
        yield unit

    def _requests(self, unit: Unit) -> list[_Request]:
        """The missing captions in the order of the unit, each once."""
        target_of = {target.granularity: target for target in self._targets}
        found = find_missing(self._inputs, self._tables, tuple(target_of), unit)
        requests = []
        for _, of_pair in itertools.groupby(found, lambda one: one.number):
            missing = list(of_pair)
            n_waiting = sum(one.prompt is None for one in missing)
            if n_waiting:
                add_to_counter(STAGE, "captions_waiting", n_waiting)
            asked = [
                (target_of[one.granularity], one.prompt)
                for one in missing
                if one.prompt is not None and one.is_first
            ]
            if asked:
                requests.append(_Request(missing[0].pair, *zip(*asked, strict=True)))
        return requests

    def _write(self, unit: Unit, requests: Sequence[_Request]) -> None:
        key_to_rows: dict[tuple[str, Key], Rows] = {}
        receipts: dict[str, Receipt] = {}
        try:
            for name, n in self._requests_by_name(requests).items():
                receipts[name] = self._allowances[name].reserve(unit.name, n)
            for target, rows in self._rows(unit, requests, receipts):
                key = (rows[0].image_hash, rows[0].prompt_hash)
                key_to_rows[target.granularity.name, key] = rows
        except ServiceError:  # earlier answers are paid for
            self._add(unit, requests, key_to_rows)
            raise
        finally:
            for receipt in receipts.values():
                receipt.settle()
                add_to_counter(STAGE, "requests", receipt.n_asked)
        self._add(unit, requests, key_to_rows)

    def _requests_by_name(self, requests: Sequence[_Request]) -> Mapping[str, int]:
        """How many captions are missing of granularities whose requests are counted."""
        name_to_n: collections.Counter[str] = collections.Counter()
        for request in requests:
            for target in request.targets:
                if target.granularity.name in self._allowances:
                    n_samples = target.granularity.decoding.n_samples
                    name_to_n[target.granularity.name] += n_samples
        return name_to_n

    def _add(
        self,
        unit: Unit,
        requests: Sequence[_Request],
        key_to_rows: Mapping[tuple[str, Key], Rows],
    ) -> None:
        """Writes the rows that were answered, in the order of the requests."""
        for target in self._targets:
            name = target.granularity.name
            ordered = [
                row
                for request in requests
                for one, prompt in zip(request.targets, request.prompts, strict=True)
                if one == target
                for row in key_to_rows.get(
                    (name, (request.pair.image_hash, prompt_hash(prompt))), ()
                )
            ]
            if ordered:
                self._tables[name].add(unit.base, ordered)
            n_failed = sum(row.finish_reason == FinishReason.ERROR for row in ordered)
            add_to_counter(STAGE, "captions_written", len(ordered) - n_failed)
            add_to_counter(STAGE, "captions_failed", n_failed)

    def _rows(
        self,
        unit: Unit,
        requests: Sequence[_Request],
        name_to_receipt: Mapping[str, Receipt],
    ) -> Iterator[tuple[CaptionTarget, Rows]]:
        """Yields rows per target, from batches of images that lack the same targets.

        So no caption is made for an image that has it.
        """
        self._checks.before_load()
        captioner = self._shared.acquire(lambda: _load_alone(self._handler))
        if name_to_receipt:
            captioner = MeteredCaptioner(captioner, name_to_receipt)
        waiting = collections.defaultdict(list)
        for request, image in self._prepare(unit, requests, captioner):
            targets, image_hash = request.targets, request.pair.image_hash
            if isinstance(image, images.ImageError):
                for one, prompt in zip(targets, request.prompts, strict=True):
                    yield one, (failed_row(image_hash, prompt, image),)
                continue
            waiting[targets].append(PreparedImage(image_hash, image, request.prompts))
            if len(waiting[targets]) >= captioner.batch_size:
                yield from self._caption(captioner, waiting.pop(targets), targets)
        for targets, batch in waiting.items():
            yield from self._caption(captioner, batch, targets)

    def _prepare(
        self, unit: Unit, requests: Sequence[_Request], captioner: Captioner
    ) -> Iterator[tuple[_Request, np.ndarray | images.ImageError]]:
        """Decodes and prepares images, one batch ahead of the model."""

        def prepare(
            item: tuple[_Request, bytes],
        ) -> tuple[_Request, np.ndarray | images.ImageError]:
            request, data = item
            try:
                rgb = images.decode(data, self._inputs.limits).rgb
            except images.ImageError as error:
                return request, error
            return request, captioner.prepare_image(rgb)

        encoded = shards.read_images(unit, [request.pair for request in requests])
        items = zip(requests, encoded, strict=True)
        return map_ahead(
            prepare, items, captioner.batch_size, lambda item: len(item[1])
        )

    def _caption(
        self,
        captioner: Captioner,
        batch: Sequence[PreparedImage],
        targets: tuple[CaptionTarget, ...],
    ) -> Iterator[tuple[CaptionTarget, Rows]]:
        """Yields the rows of all answers, then raises the first ServiceError."""
        add_to_counter(STAGE, "images_encoded", len(batch))
        errors = []
        for row in self._handler.run_inference(batch, captioner, {"targets": targets}):
            for one, answer in zip(targets, row, strict=True):
                if isinstance(answer, ServiceError):
                    errors.append(answer)
                else:
                    yield one, answer
        if errors:
            raise errors[0]


class _NoModel:
    """Held by `Shared` while one model is freed for the next."""


def _load_alone(handler: CaptionerHandler) -> Captioner:
    Shared().acquire(_NoModel)
    return handler.load_model()
