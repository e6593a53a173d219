"""The time, memory and files that larger crawls take with the same recipe.

In: costs of one pair or shard, measured on a sample. Out: a row for each number of
pairs. The stages say what a pair costs them; this module only adds up.
"""

import dataclasses
import math
import pickle
from collections.abc import Mapping

from pipeline.captioning import footprint as captioning
from pipeline.config.curation import CurationConfig
from pipeline.engine.run_folder import RunFolder
from pipeline.export import footprint as export
from pipeline.forecast.costs import StageTime
from pipeline.forecast.from_sample import Forecast
from pipeline.forecast.stratified_estimates import Interval
from pipeline.records import KEPT
from pipeline.scoring import footprint as scoring
from pipeline.selection import footprint as selection

N_PAIRS = (10**6, 10**9, 10**10)
N_WORKERS = (1, 100, 10_000)  # of one core each


@dataclasses.dataclass(frozen=True)
class PairCosts:
    """What one pair or one shard of the sample takes."""

    config: CurationConfig
    pairs_per_shard: float
    outcome_to_share: Mapping[str, float]
    captions_per_pair: float
    stage_to_cpu_s: Mapping[str, float]  # per pair; for `export` per kept pair
    embedding_dim: int
    decision_bytes: float  # per pair, of decisions between two steps of `select`
    lot_bytes: int  # of a pickled `Lot`
    n_tables: int  # of a lot

    @classmethod
    def from_sample(
        cls,
        sample: RunFolder,
        forecast: Forecast,
        stage_to_time: Mapping[str, StageTime],
    ) -> "PairCosts":
        """Measures what the pairs of a decided sample take."""
        n_shards = sum(n for _, n in forecast.n_sampled_shards.values())
        captions = sum(i.estimate for i in forecast.name_to_captions.values())
        return cls(
            config=sample.config,
            pairs_per_shard=forecast.n_pairs.estimate / n_shards,
            outcome_to_share=_estimates(forecast.outcome_to_share),
            captions_per_pair=captions / forecast.n_pairs.estimate,
            stage_to_cpu_s={s: t.cpu_s_per_pair for s, t in stage_to_time.items()},
            embedding_dim=scoring.embedding_dim(sample),
            decision_bytes=selection.decision_bytes(sample),
            lot_bytes=len(pickle.dumps(sample.lots[0])),
            n_tables=scoring.n_tables(sample)
            + selection.N_TABLES
            + captioning.n_tables(sample.config),
        )

    def crawl(self, n_pairs: int) -> selection.Crawl:
        """A crawl of `n_pairs` in shards as large as those of the sample."""
        return selection.Crawl(
            n_pairs=n_pairs,
            n_shards=math.ceil(n_pairs / self.pairs_per_shard),
            pairs_per_shard=self.pairs_per_shard,
            outcome_to_share=self.outcome_to_share,
            decision_bytes=self.decision_bytes,
        )


def _estimates(name_to_interval: Mapping[str, Interval]) -> dict[str, float]:
    return {name: interval.estimate for name, interval in name_to_interval.items()}


@dataclasses.dataclass(frozen=True)
class ScaleRow:
    """What a crawl of `n_pairs` takes; bytes and files of the run folder."""

    n_pairs: int
    n_source_shards: int
    workers_to_hours: Mapping[int, float]  # of all stages that were timed
    worker_bytes: Mapping[str, float]  # peaks of one worker, besides the weights of
    # models, by what it holds
    shuffle_bytes: float
    n_files: int
    n_captions: float


def scale_row(costs: PairCosts, n_pairs: int) -> ScaleRow:
    """The row of a crawl of `n_pairs`, in shards as large as those of the sample."""
    return ScaleRow(
        n_pairs=n_pairs,
        n_source_shards=costs.crawl(n_pairs).n_shards,
        workers_to_hours={n: hours(costs, n_pairs, n) for n in N_WORKERS},
        worker_bytes=worker_bytes(costs, n_pairs),
        shuffle_bytes=shuffle_bytes(costs, n_pairs),
        n_files=n_files(costs, n_pairs),
        n_captions=costs.captions_per_pair * n_pairs,
    )


def hours(costs: PairCosts, n_pairs: int, n_workers: int) -> float:
    """Hours of all timed stages, one after the other, with `n_workers` cores.

    No worker does less than a shard: a source shard in `score` and `select`, a training
    shard in `export`.
    """
    kept_share = costs.outcome_to_share[KEPT]
    total_s = 0.0
    for stage, cpu_s in costs.stage_to_cpu_s.items():
        is_export = stage == "export"
        n_items = n_pairs * (kept_share if is_export else 1)
        per_shard = costs.pairs_per_shard
        if is_export:
            per_shard = costs.config.export.samples_per_shard
        n_shards = math.ceil(n_items / per_shard)
        n_in_turn = math.ceil(n_shards / n_workers)
        total_s += cpu_s * min(n_in_turn * per_shard, n_items)
    return total_s / 3600


def worker_bytes(costs: PairCosts, n_pairs: int) -> dict[str, float]:
    """Peak memory of one worker besides models, by what it holds."""
    crawl = costs.crawl(n_pairs)
    return {
        **scoring.worker_bytes(costs.embedding_dim, costs.pairs_per_shard),
        **selection.worker_bytes(costs.config.selection, crawl),
    }


def shuffle_bytes(costs: PairCosts, n_pairs: int) -> float:
    """Bytes that cross shuffles: lots, and what `select` compares."""
    crawl = costs.crawl(n_pairs)
    n_shuffles = captioning.n_shuffles(costs.config) + export.N_SHUFFLES
    lots = float(crawl.n_shards * costs.lot_bytes * n_shuffles)
    return lots + selection.shuffle_bytes(costs.config.selection, crawl)


def n_files(costs: PairCosts, n_pairs: int) -> int:
    """Tables of all lots with their summaries, receipts and training shards, without
    ledgers and the manifest."""
    n_kept = n_pairs * costs.outcome_to_share[KEPT]
    n_lots = math.ceil(costs.crawl(n_pairs).n_shards / costs.config.shards_per_lot)
    per_lot = 2 * costs.n_tables + 1
    return n_lots * per_lot + export.n_files(costs.config.export, n_kept)
