"""Exports the training shards of the kept images and their captions.

In: units with scores, decisions and captions. Out, in one folder: shards in the order
of the sources, each with an index and a receipt, and at the end the manifest. The bytes
of a shard depend only on its samples and the export settings; a shard with a valid
receipt is not written again.
"""

import collections
import dataclasses
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam

from pipeline.config.captions import Granularity
from pipeline.config.curation import CurationConfig, ExportConfig
from pipeline.config.fingerprint import fingerprint
from pipeline.engine.caption_tables import CaptionTables
from pipeline.engine.counters import add_to_counter
from pipeline.engine.run_folder import RunFolder
from pipeline.export import manifest
from pipeline.export.completeness import names_in, table_names_of
from pipeline.export.manifest import Receipt, UnitSummary
from pipeline.export.samples import SampleTables, kept_samples, with_image
from pipeline.export.shard_formats import TFRECORD, ShardFormat
from pipeline.records import SCHEMA_VERSION, Pair, Sample
from pipeline.sources import shards as sources
from pipeline.sources.shards import Unit
from pipeline.storage import files
from pipeline.storage.json_files import read_json, write_json
from pipeline.storage.prefetch import map_ahead

STAGE = "export"

_OWN_NAME = re.compile(
    r"train-\d{5,}-of-\d{5,}\.(tfrecord|tar)(\..+)?|manifest\.json\..+\.tmp"
)
_N_IMAGES_AHEAD = 32


class Export(beam.PTransform):
    """Writes the training shards of a run; yields the path of their manifest.

    Counters: `samples_written`, `shards_written`, `shards_skipped`.
    """

    def __init__(self, run: RunFolder, shard_format: ShardFormat = TFRECORD) -> None:
        super().__init__()
        self._config = run.config
        self._folder = shard_format.path(run.root)
        self._format = shard_format
        self._tables = SampleTables.of(run)
        self._header = manifest.header(run)

    def expand(self, units: beam.PCollection) -> beam.PCollection:
        tables, config, folder = self._tables, self._config, self._folder
        write_shard = _WriteShard(tables, config, folder, self._format)
        summaries = (
            units
            | "Distribute units" >> beam.Reshuffle()
            | "Summarize units" >> beam.ParDo(_SummarizeUnit(tables, config.export))
        )
        receipts = (
            summaries
            | "Collect summaries" >> beam.combiners.ToList()
            | "Plan shards" >> beam.FlatMap(_plan, config.export, folder, self._format)
            | "Distribute shards" >> beam.Reshuffle()
            | "Write shards" >> beam.ParDo(write_shard)
        )
        return (
            units.pipeline
            | "Start the manifest" >> beam.Create([self._header])
            | "Write the manifest"
            >> beam.Map(
                _write_manifest,
                files.join(folder, manifest.NAME),
                summaries=beam.pvalue.AsList(summaries),
                receipts=beam.pvalue.AsList(receipts),
            )
        )


@dataclasses.dataclass(frozen=True)
class Slice:
    """Samples `start` to `stop` of the exported samples of a unit."""

    unit: Unit
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """One shard: its samples, and the fingerprint of its bytes."""

    name: str
    fingerprint: str
    slices: tuple[Slice, ...]


def plan_shards(
    summaries: Iterable[UnitSummary],
    export: ExportConfig,
    shard_format: ShardFormat = TFRECORD,
) -> list[ShardPlan]:
    """Divides the samples of all units, by source and path, into full shards."""
    n_per_shard, n_before = export.samples_per_shard, 0
    shards = collections.defaultdict(list)
    for summary in sorted(
        summaries, key=lambda s: (s.unit.source.name, s.unit.shards[0].uri)
    ):
        start = 0
        while start < summary.n_samples:
            shard, n_in_shard = divmod(n_before + start, n_per_shard)
            stop = min(start + n_per_shard - n_in_shard, summary.n_samples)
            shards[shard].append((Slice(summary.unit, start, stop), summary.digest))
            start = stop
        n_before += summary.n_samples
    return [
        ShardPlan(
            name=f"train-{shard:05d}-of-{len(shards):05d}{shard_format.suffix}",
            fingerprint=_shard_fingerprint(parts, export),
            slices=tuple(piece for piece, _ in parts),
        )
        for shard, parts in shards.items()
    ]


def _shard_fingerprint(parts: Sequence[tuple[Slice, str]], export: ExportConfig) -> str:
    samples = [(digest, piece.start, piece.stop) for piece, digest in parts]
    preparation = (export.max_side_px, export.jpeg_quality)
    return fingerprint("shard", SCHEMA_VERSION, preparation, samples)


class _SummarizeUnit(beam.DoFn):
    """Summarizes the samples of a unit, without their images."""

    def __init__(self, tables: SampleTables, export: ExportConfig) -> None:
        self._tables = tables
        self._export = export
        self._captions: dict[Granularity, CaptionTables] = {}

    def setup(self) -> None:
        self._captions = self._tables.open_captions()

    def process(self, unit: Unit) -> Iterator[UnitSummary]:
        pairs = self._tables.decided_pairs(unit)
        kept = kept_samples(unit, pairs, self._captions)
        flagged = self._tables.flags.read(unit)
        kept = self._tables.flags.without_dropped(kept, flagged)
        exported = _find_exported(kept, self._export)
        digest = hashlib.blake2b(digest_size=16)
        for _, sample in exported:
            digest.update(repr(sample).encode())
        yield UnitSummary(
            unit=unit,
            table_names=table_names_of(self._captions, unit),
            outcome_to_count=collections.Counter(d.outcome for _, d, _ in pairs),
            n_without_granularity={
                g.name: sum(g.name not in sample.captions for _, sample in kept)
                for g in self._captions
            },
            n_samples=len(exported),
            digest=digest.hexdigest(),
            dropped_captions=self._tables.flags.counts(flagged),
        )


def _find_exported(
    kept: Iterable[tuple[Pair, Sample]], export: ExportConfig
) -> list[tuple[Pair, Sample]]:
    required = set(export.required_granularities)
    return [
        (pair, sample) for pair, sample in kept if required <= sample.captions.keys()
    ]


def _plan(
    summaries: Iterable[UnitSummary],
    export: ExportConfig,
    folder: str,
    shard_format: ShardFormat,
) -> list[ShardPlan]:
    """Plans the shards, and removes files that are not of the plan."""
    shards = plan_shards(summaries, export, shard_format)
    _remove_stale(folder, shards)
    return shards


def _remove_stale(folder: str, shards: Sequence[ShardPlan]) -> None:
    """Removes a manifest of other shards, then those shards, then their indexes.

    In this order a manifest never names a missing shard, and a shard never lacks its
    index. Half-written files of a killed run are removed too.
    """
    path = files.join(folder, manifest.NAME)
    written = read_json(path)
    planned = manifest.shards_fingerprint(shards)
    if written is not None and written["fingerprints"]["shards"] != planned:
        files.delete(folder, [manifest.NAME])
    own = {name for name in names_in(folder) if _OWN_NAME.fullmatch(name)}
    stale = own - manifest.file_names(shard.name for shard in shards)
    by_kind = sorted(stale, key=lambda s: (s.endswith(manifest.INDEX_SUFFIX), s))
    files.delete(folder, by_kind)


class _WriteShard(beam.DoFn):
    """Writes a shard unless it exists: its index, its records, then its receipt."""

    def __init__(
        self,
        tables: SampleTables,
        config: CurationConfig,
        folder: str,
        shard_format: ShardFormat,
    ) -> None:
        self._tables = tables
        self._export = config.export
        self._limits = config.limits
        self._folder = folder
        self._format = shard_format
        self._granularities = [g.name for g in config.granularities]
        self._captions: dict[Granularity, CaptionTables] = {}

    def setup(self) -> None:
        self._captions = self._tables.open_captions()

    def process(self, shard: ShardPlan) -> Iterator[Receipt]:
        receipt = self._receipt(shard)
        if receipt is None:
            receipt = self._write(shard)
            add_to_counter(STAGE, "shards_written")
            add_to_counter(STAGE, "samples_written", receipt.n_samples)
        else:
            add_to_counter(STAGE, "shards_skipped")
        yield receipt

    def _receipt(self, shard: ShardPlan) -> Receipt | None:
        """The receipt of a shard; None if it is missing, or of another plan."""
        path = files.join(self._folder, shard.name)
        stored = read_json(path + manifest.RECEIPT_SUFFIX)
        if stored is None or stored["fingerprint"] != shard.fingerprint:
            return None
        parts = (path, path + manifest.INDEX_SUFFIX)
        return Receipt(**stored) if all(map(files.is_file, parts)) else None

    def _write(self, shard: ShardPlan) -> Receipt:
        path = files.join(self._folder, shard.name)
        suffixes = (manifest.RECEIPT_SUFFIX, "", manifest.INDEX_SUFFIX)
        there = [shard.name + s for s in suffixes if files.is_file(path + s)]
        files.delete(self._folder, there)
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, shard.name)
            samples = self._samples(shard)
            index = self._format.write_local(local, samples, self._granularities)
            files.write(path + manifest.INDEX_SUFFIX, index.tobytes())
            n_bytes, sha256 = files.publish(local, path)
        receipt = Receipt(shard.name, shard.fingerprint, len(index), n_bytes, sha256)
        write_json(path + manifest.RECEIPT_SUFFIX, dataclasses.asdict(receipt))
        return receipt

    def _samples(self, shard: ShardPlan) -> Iterator[Sample]:
        for piece in shard.slices:
            pairs = self._tables.decided_pairs(piece.unit)
            kept = kept_samples(piece.unit, pairs, self._captions)
            flagged = self._tables.flags.read(piece.unit)
            kept = self._tables.flags.without_dropped(kept, flagged)
            exported = _find_exported(kept, self._export)[piece.start : piece.stop]
            encoded = sources.read_images(piece.unit, [pair for pair, _ in exported])
            samples = [sample for _, sample in exported]
            items = zip(samples, encoded, strict=True)
            yield from map_ahead(
                self._with_image, items, _N_IMAGES_AHEAD, lambda item: len(item[1])
            )

    def _with_image(self, item: tuple[Sample, bytes]) -> Sample:
        return with_image(*item, self._export, self._limits)


def _write_manifest(
    header: dict[str, Any],
    path: str,
    summaries: Sequence[UnitSummary],
    receipts: Sequence[Receipt],
) -> str:
    write_json(path, manifest.complete(header, summaries, receipts))
    return path
