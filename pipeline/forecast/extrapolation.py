"""The time, memory, bytes and files that larger crawls take with the same recipe.

In: costs of one pair, shard or lot, measured on a sample. Out: a row for each number of
pairs. The stages say what a pair or a lot costs them; this module only adds up.
"""

import dataclasses
import math
import pickle
from collections.abc import Mapping

from pipeline.captioning import footprint as captioning
from pipeline.config.curation import CurationConfig
from pipeline.engine.run_folder import RunFolder
from pipeline.export import footprint as export
from pipeline.forecast import launcher
from pipeline.forecast.costs import StageTime
from pipeline.forecast.from_sample import Forecast
from pipeline.forecast.stratified_estimates import Interval
from pipeline.records import KEPT
from pipeline.scoring import footprint as scoring
from pipeline.selection import footprint as selection
from pipeline.storage.tables import FILES_PER_TABLE

N_PAIRS = (10**6, 10**9, 10**10)
N_WORKERS = (1, 100, 10_000)  # of one core each


@dataclasses.dataclass(frozen=True)
class PairCosts:
    """What one pair, shard or lot of the sample takes."""

    config: CurationConfig
    pairs_per_shard: float
    outcome_to_share: Mapping[str, float]
    name_to_captioned_share: Mapping[str, float]  # of pairs, by granularity
    captions_per_pair: float
    stage_to_time: Mapping[str, StageTime]
    bytes_per_pair: Mapping[str, float]  # in files, by what is written
    bytes_per_lot: Mapping[str, float]  # likewise, of what is the same in each lot
    embedding_dim: int
    decision_bytes: float  # per pair, of decisions between two steps of `select`
    shard_bytes: float  # of a pickled shard
    score_files: int  # of a lot

    @classmethod
    def from_sample(
        cls,
        sample: RunFolder,
        forecast: Forecast,
        stage_to_time: Mapping[str, StageTime],
    ) -> "PairCosts":
        """Measures what the pairs of a decided sample take."""
        n_pairs = forecast.n_pairs.estimate
        n_shards = sum(n for _, n in forecast.n_sampled_shards.values())
        captions = sum(_estimates(forecast.name_to_captions).values())
        per_lot = _bytes_per_lot(sample)
        return cls(
            config=sample.config,
            pairs_per_shard=n_pairs / n_shards,
            outcome_to_share=_estimates(forecast.outcome_to_share),
            name_to_captioned_share={
                name: images / n_pairs
                for name, images in _estimates(forecast.name_to_images).items()
            },
            captions_per_pair=captions / n_pairs,
            stage_to_time=stage_to_time,
            bytes_per_pair={  # each shard of the sample is a lot
                name: (n_bytes - n_shards * per_lot.get(name, 0)) / n_pairs
                for name, n_bytes in _estimates(forecast.bytes_written).items()
            },
            bytes_per_lot=per_lot,
            embedding_dim=scoring.embedding_dim(sample),
            decision_bytes=selection.decision_bytes(sample),
            shard_bytes=len(pickle.dumps(sample.lots[0].shards[0])),
            score_files=scoring.n_files(sample),
        )

    def n_shards(self, n_pairs: int) -> int:
        """Source shards, as large as those of the sample."""
        return math.ceil(n_pairs / self.pairs_per_shard)

    def crawl(self, n_pairs: int) -> selection.Crawl:
        """A crawl of `n_pairs` as `select` sees it."""
        n_lots = math.ceil(self.n_shards(n_pairs) / self.config.shards_per_lot)
        return selection.Crawl(
            n_pairs=n_pairs,
            n_lots=n_lots,
            pairs_per_lot=n_pairs / n_lots,
            outcome_to_share=self.outcome_to_share,
            decision_bytes=self.decision_bytes,
        )


def _estimates(name_to_interval: Mapping[str, Interval]) -> dict[str, float]:
    return {name: interval.estimate for name, interval in name_to_interval.items()}


def _bytes_per_lot(sample: RunFolder) -> dict[str, float]:
    """Bytes of the tables of a lot that do not grow with its pairs."""
    decisions = scoring.table_footer_bytes(sample.decisions, sample.lots[0].name)
    return {"scores": scoring.footer_bytes(sample), "decisions": decisions}


@dataclasses.dataclass(frozen=True)
class ScaleRow:
    """What a crawl of `n_pairs` takes; bytes and files of the run folder."""

    n_pairs: int
    n_source_shards: int
    n_lots: int
    workers_to_hours: Mapping[int, float]  # of all stages that were timed
    stage_to_cpu_s: Mapping[str, float]  # of one worker that does it all
    launcher_cpu_s: float  # of a command, beside its jobs
    worker_bytes: Mapping[str, float]  # peaks of one worker, besides the weights of
    # models, by what it holds
    shuffle_bytes: float
    written_bytes: Mapping[str, float]  # by what is written
    n_files: Mapping[str, int]  # likewise
    n_captions: float
    n_caption_blocks: int


def scale_row(costs: PairCosts, n_pairs: int) -> ScaleRow:
    """The row of a crawl of `n_pairs`, in shards as large as those of the sample."""
    crawl = costs.crawl(n_pairs)
    images = _captioned_share(costs) * crawl.pairs_per_lot
    return ScaleRow(
        n_pairs=n_pairs,
        n_source_shards=costs.n_shards(n_pairs),
        n_lots=crawl.n_lots,
        workers_to_hours={n: hours(costs, n_pairs, n) for n in N_WORKERS},
        stage_to_cpu_s={
            stage: time.start_cpu_s
            + time.cpu_s_per_pair * _n_items(costs, stage, n_pairs)
            for stage, time in costs.stage_to_time.items()
        },
        launcher_cpu_s=launcher.cpu_s(crawl.n_lots),
        worker_bytes=worker_bytes(costs, n_pairs),
        shuffle_bytes=shuffle_bytes(costs, n_pairs),
        written_bytes=written_bytes(costs, n_pairs),
        n_files=n_files(costs, n_pairs),
        n_captions=costs.captions_per_pair * n_pairs,
        n_caption_blocks=crawl.n_lots * captioning.n_blocks(images),
    )


def _captioned_share(costs: PairCosts) -> float:
    return max(costs.name_to_captioned_share.values(), default=0.0)


def _n_items(costs: PairCosts, stage: str, n_pairs: float) -> float:
    """The pairs that a stage works on."""
    return n_pairs * (costs.outcome_to_share[KEPT] if stage == "export" else 1)


def hours(costs: PairCosts, n_pairs: int, n_workers: int) -> float:
    """Hours of all timed stages, one after the other, with `n_workers` cores.

    No worker does less than a source shard in `score`, a lot in `select` and a training
    shard in `export`. Each worker that has work starts its programs and models.
    """
    total_s = 0.0
    for stage, time in costs.stage_to_time.items():
        n_items = _n_items(costs, stage, n_pairs)
        per_unit = _items_per_unit(costs, stage, n_pairs)
        n_in_turn = math.ceil(math.ceil(n_items / per_unit) / n_workers)
        work_s = time.cpu_s_per_pair * min(n_in_turn * per_unit, n_items)
        total_s += time.start_cpu_s + work_s
    return total_s / 3600


def _items_per_unit(costs: PairCosts, stage: str, n_pairs: int) -> float:
    """Pairs of the least that a worker is given in a stage."""
    if stage == "score":
        return costs.pairs_per_shard
    per_lot = costs.crawl(n_pairs).pairs_per_lot
    if stage == "select":
        return per_lot
    kept_per_lot = max(per_lot * costs.outcome_to_share[KEPT], 1.0)
    return min(kept_per_lot, costs.config.export.samples_per_shard)


def worker_bytes(costs: PairCosts, n_pairs: int) -> dict[str, float]:
    """Peak memory of one worker besides models, by what it holds."""
    crawl = costs.crawl(n_pairs)
    return {
        **scoring.worker_bytes(costs.embedding_dim, costs.pairs_per_shard),
        **selection.worker_bytes(costs.config.selection, crawl),
    }


def shuffle_bytes(costs: PairCosts, n_pairs: int) -> float:
    """Bytes that cross shuffles: lots, and what `select` compares."""
    n_shuffles = captioning.n_shuffles(costs.config) + export.N_SHUFFLES
    lots = costs.n_shards(n_pairs) * costs.shard_bytes * n_shuffles
    crawl = costs.crawl(n_pairs)
    return lots + selection.shuffle_bytes(costs.config.selection, crawl)


def written_bytes(costs: PairCosts, n_pairs: int) -> dict[str, float]:
    """Bytes of tables and training shards, by what is written."""
    crawl = costs.crawl(n_pairs)
    found = {
        name: n_bytes * n_pairs + costs.bytes_per_lot.get(name, 0) * crawl.n_lots
        for name, n_bytes in costs.bytes_per_pair.items()
    }
    index = scoring.index_bytes(crawl.pairs_per_lot) * crawl.n_lots
    return {**found, "indexes of ids": index}


def n_files(costs: PairCosts, n_pairs: int) -> dict[str, int]:
    """Files of all lots, without ledgers, the plan and the manifest."""
    crawl, config = costs.crawl(n_pairs), costs.config
    images = _captioned_share(costs) * crawl.pairs_per_lot
    kept = costs.outcome_to_share[KEPT] * crawl.pairs_per_lot
    per_lot = {
        "scores": costs.score_files,
        "decisions and similarities": selection.n_files(config.selection),
        "captions": captioning.n_files(config, images),
        "training shards": export.n_files(config.export, kept),
        "report": FILES_PER_TABLE,
    }
    return {name: n * crawl.n_lots for name, n in per_lot.items()}
