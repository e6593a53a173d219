"""Exports the training shards of lots: the kept images and their captions.

In: lots with scores, decisions and captions. Out, in one folder: shards of each lot,
each with an index, and the receipt of the lot. `publishing.py` then makes the manifest.

A shard is named by its lot and by all that determines its bytes: its samples and the
settings of the export. So old and new shards of a lot lie side by side, and one that is
there is not written again.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam

from pipeline.config.captions import Granularity
from pipeline.config.curation import CurationConfig
from pipeline.engine import error_tables
from pipeline.engine.caption_tables import CaptionTables
from pipeline.engine.counters import add_to_counter
from pipeline.engine.error_tables import Failure
from pipeline.engine.run_folder import RunFolder
from pipeline.export import receipts
from pipeline.export.lot_shards import PlannedShard, ShardIdentity, plan_shards
from pipeline.export.publishing import STAGE as STAGE
from pipeline.export.receipts import Counts, Inputs, Receipt, ShardFacts
from pipeline.export.samples import LotSamples, SampleTables
from pipeline.export.shard_formats import TFRECORD, ShardFormat
from pipeline.export.shard_writer import ShardWriter
from pipeline.sources.shards import Lot

_N_ITEMS = 8  # of a lot, which are worked on side by side


class Export(beam.PTransform):
    """Writes the shards and the receipts of lots; yields the names of the lots.

    Counters: `samples_written`, `shards_written`, `shards_skipped`, `images_failed`.
    """

    def __init__(self, run: RunFolder, shard_format: ShardFormat = TFRECORD) -> None:
        super().__init__()
        self._work = _Work.of(run, shard_format)

    def expand(self, lots: beam.PCollection) -> beam.PCollection:
        return (
            lots
            | "Distribute lots" >> beam.Reshuffle()
            | "Plan shards" >> beam.ParDo(_PlanLot(self._work))
            | "Distribute shards" >> beam.Reshuffle()
            | "Write shards" >> beam.ParDo(_WriteShards(self._work))
            | "Group by lot" >> beam.GroupByKey()
            | "Write receipts" >> beam.ParDo(_WriteReceipt(self._work))
        )


@dataclasses.dataclass(frozen=True)
class _Work:
    """What workers know of a run."""

    root: str
    config: CurationConfig
    tables: SampleTables
    settings: str
    shard_format: ShardFormat

    @classmethod
    def of(cls, run: RunFolder, shard_format: ShardFormat) -> "_Work":
        tables = SampleTables.of(run)
        settings = receipts.settings_of(run.config, tables)
        return cls(run.root, run.config, tables, settings, shard_format)

    @property
    def folder(self) -> str:
        return self.shard_format.path(self.root)

    @property
    def identity(self) -> ShardIdentity:
        return ShardIdentity.of(self.config, self.shard_format)


@dataclasses.dataclass(frozen=True)
class _Item:
    """Consecutive shards of a lot: what one worker writes."""

    lot: Lot
    number: int
    n_items: int
    shards: tuple[PlannedShard, ...]
    known: tuple[ShardFacts, ...]  # of the last receipt
    inputs: Inputs
    counts: Counts


@dataclasses.dataclass(frozen=True)
class _Written:
    """What became of an item."""

    item: _Item
    shards: tuple[ShardFacts, ...]
    failures: tuple[Failure, ...]


class _WithCaptions(beam.DoFn):
    """Knows which tables of captions are there."""

    def __init__(self, work: _Work) -> None:
        self._work = work
        self._captions: dict[Granularity, CaptionTables] = {}

    def setup(self) -> None:
        self._captions = self._work.tables.open_captions()


class _PlanLot(_WithCaptions):
    """Divides the samples of a lot into shards; reads no image."""

    def process(self, lot: Lot) -> Iterator[_Item]:
        work = self._work
        inputs = receipts.inputs_of(lot, work.tables, self._captions, work.settings)
        samples = LotSamples(work.tables, self._captions, lot)
        planned, counts = plan_shards(samples, work.config, work.identity)
        last = receipts.read(work.folder, lot)
        known = {} if last is None else {shard.name: shard for shard in last.shards}
        parts = _divide(planned, _N_ITEMS)
        for number, shards in enumerate(parts):
            names = (self._name(lot, shard) for shard in shards)
            facts = tuple(known[name] for name in names if name in known)
            yield _Item(lot, number, len(parts), shards, facts, inputs, counts)

    def _name(self, lot: Lot, shard: PlannedShard) -> str:
        return self._work.shard_format.shard_name(lot.base, shard.number, shard.digest)


def _divide(
    shards: Sequence[PlannedShard], n_parts: int
) -> list[tuple[PlannedShard, ...]]:
    """Up to `n_parts` parts of about equal length; one of a lot without shards."""
    n_parts = max(1, min(n_parts, len(shards)))
    bounds = [len(shards) * part // n_parts for part in range(n_parts + 1)]
    return [tuple(shards[start:stop]) for start, stop in itertools.pairwise(bounds)]


class _WriteShards(_WithCaptions):
    """Writes the shards of an item that are not there yet."""

    def process(self, item: _Item) -> Iterator[tuple[str, _Written]]:
        work, lot = self._work, item.lot
        name_to_known = {shard.name: shard for shard in item.known}
        samples = LotSamples(work.tables, self._captions, lot)
        writer = ShardWriter(
            work.folder, work.shard_format, work.config, work.identity, lot, samples
        )
        found: list[ShardFacts] = []
        failures: list[Failure] = []
        for shard in item.shards:
            facts = writer.find(shard, name_to_known)
            if facts is None:
                facts = writer.write(shard, failures)
                add_to_counter(STAGE, "shards_written", int(facts.n_samples > 0))
                add_to_counter(STAGE, "samples_written", facts.n_samples)
            else:
                add_to_counter(STAGE, "shards_skipped")
            if facts.n_samples:
                found.append(facts)
        if failures:
            add_to_counter(STAGE, "images_failed", len(failures))
        yield lot.name, _Written(item, tuple(found), tuple(failures))


class _WriteReceipt(beam.DoFn):
    """Writes the table of errors of a lot, and then its receipt."""

    def __init__(self, work: _Work) -> None:
        self._work = work

    def process(self, element: tuple[str, Iterable[_Written]]) -> Iterator[str]:
        name, written = element
        number_to_written: Mapping[int, _Written]
        number_to_written = {one.item.number: one for one in written}
        items = [one for _, one in sorted(number_to_written.items())]
        failures = [failure for one in items for failure in one.failures]
        shards = tuple(shard for one in items for shard in one.shards)
        first = items[0].item
        errors = self._work.shard_format.errors
        error_tables.write(self._work.root, errors, name, failures)
        reasons = error_tables.count_reasons(failures)
        receipt = Receipt(first.inputs, first.counts, shards, reasons)
        receipts.write(self._work.folder, name, receipt)
        yield name
