"""Stage 1, score: everything measured on every input pair, once.

In: lots. Out: the tables of each lot (the pairs, the language of their alt text, their
embeddings, the vectors of each descriptor), which have a row for each pair in the same
order, and the lots again. Shards are scored one by one, into parts; the parts of a
lot's shards are then sealed into its tables. A table that is there is not made again.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from pipeline.config.curation import ImageTextSource
from pipeline.engine import id_index, lot_plan, scored_shards
from pipeline.engine.counters import add_to_counter
from pipeline.engine.run_folder import RunFolder
from pipeline.scoring.encoder_handler import EncoderHandler
from pipeline.scoring.missing_tables import Tables, tables_by_source
from pipeline.scoring.parts import delete_parts, finished_shards
from pipeline.scoring.score_shard import ScoreShard
from pipeline.scoring.seal_lot import SealLot
from pipeline.scoring.shard_pass import STAGE as STAGE
from pipeline.scoring.shard_work import Donor, ShardWork, read_places
from pipeline.sources.shards import Lot


class Score(beam.PTransform):
    """Writes the tables that lots lack, and passes the lots on.

    A lot of which a shard is not what it was when it was listed gets no tables and is
    not passed on: the next run lists what the shard holds by then. The parts of the
    lot's other shards are taken over.

    Counters: `pairs` written, and how many of them are `unreadable`, and likewise
    `evaluation_images` and `evaluation_unreadable`, `seed_images` and
    `seed_unreadable`; `images_encoded`, `texts_encoded`, `languages_detected` and
    `images_described`; `pairs_taken_over`, from tables of other lots;
    `members_left_out`, which a key has besides those of its pair; `lots_skipped`,
    which lack nothing, and `shards_changed`.
    """

    def __init__(self, run: RunFolder, encoder_handler: EncoderHandler) -> None:
        super().__init__()
        tables = tables_by_source(run)
        self._list_work = _ListWork(tables, _samples(run))
        self._score_shard = ScoreShard(run, encoder_handler)
        self._seal_lot = SealLot(run.root, tables)
        self._workers = run.config.score_workers

    def expand(self, lots: beam.PCollection) -> beam.PCollection:
        listed = lots | "List shards" >> beam.ParDo(self._list_work).with_outputs(
            "finished", main="work"
        )
        score_shards = beam.ParDo(self._score_shard)
        sealed = (
            listed.work
            | "Distribute shards" >> beam.Reshuffle()
            | "Score shards" >> score_shards.with_resource_hints(**self._workers.hints)
            | "Group by lot" >> beam.GroupByKey()
            | "Seal lots" >> beam.ParDo(self._seal_lot)
        )
        return (listed.finished, sealed) | "All lots" >> beam.Flatten()


def expect_scored(run: RunFolder) -> None:
    """Raises ValueError if a lot is not scored, though every worker has ended."""
    source_to_tables = tables_by_source(run)
    finished: set[str] = set()
    for lot in scored_shards.unscored_lots(run):
        tables = source_to_tables[lot.source]
        finished |= finished_shards(run.root, tables)
    fault, advice = "changed while being read", "run the same command again"
    scored_shards.expect_scored(run, fault, advice, finished)


def remove_outdated(run: RunFolder) -> None:
    """Removes the tables of what shards held before, once those of now are there, and
    parts of shards whose lots are sealed."""
    outdated = run.plan.changed(run.all_lots).keys() - {u.name for u in run.all_lots}
    for tables in tables_by_source(run).values():
        for lot_tables in tables.values() if outdated else ():
            names = sorted(outdated & lot_tables.lot_names())
            lot_tables.delete(names)
            if lot_tables == tables["pairs"]:
                id_index.delete(lot_tables, names)
        delete_parts(run.root, tables)
    run.plan.without(outdated).write(run.root)


def _samples(run: RunFolder) -> dict[ImageTextSource, frozenset[str]]:
    """Names of scored lots of one shard, by source: those of samples."""
    start = f"{lot_plan.SINGLE}-"
    return {
        source: frozenset(
            name for name in run.pairs(source).lot_names() if name.startswith(start)
        )
        for source in (
            *run.config.evaluation_sets,
            *run.config.seed_sets,
            *run.config.sources,
        )
    }


class _ListWork(beam.DoFn):
    """Yields the shards of lots that lack tables; finished lots apart."""

    def __init__(
        self,
        source_to_tables: Mapping[ImageTextSource, Tables],
        source_to_samples: Mapping[ImageTextSource, frozenset[str]],
    ) -> None:
        self._source_to_tables = source_to_tables
        self._source_to_samples = source_to_samples

    def process(
        self, lot: Lot
    ) -> Iterator[ShardWork | TaggedOutput[Literal["finished"], Lot]]:
        tables = self._source_to_tables[lot.source]
        missing = tuple(m for m, found in tables.items() if not found.has(lot.name))
        if not missing:
            add_to_counter(STAGE, "lots_skipped", 1)
            yield TaggedOutput("finished", lot)
            return
        donors = self._donors(lot, tables) if "pairs" in missing else {}
        for number, shard in enumerate(lot.shards):
            donor, carried = donors.get(number), None if number else lot
            yield ShardWork(lot.name, shard, number, missing, donor, carried)

    def _donors(self, lot: Lot, tables: Tables) -> dict[int, Donor]:
        """Lots that hold a shard's pairs already, by number of the shard."""
        place_to_donor = {}
        if lot.predecessor and tables["pairs"].has(lot.predecessor):
            places = read_places(tables["pairs"].path(lot.predecessor))
            for number, place in enumerate(places):
                place_to_donor[place] = Donor(lot.predecessor, number)
        donors = {}
        for number, shard in enumerate(lot.shards):
            sample = lot_plan.single(shard).name
            if donor := place_to_donor.get((shard.uri, shard.mark)):
                donors[number] = donor
            elif sample in self._source_to_samples[lot.source] - {lot.name}:
                donors[number] = Donor(sample, 0)
        return donors
