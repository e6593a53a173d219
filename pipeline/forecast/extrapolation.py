"""What larger crawls with the same recipe take: a model of time, memory and files.

In: costs of one pair or shard, measured on a sample. Out: a row for each number of
pairs. Each formula names the code that it stands for.
"""

import dataclasses
import math
import pickle
from collections.abc import Mapping

from pipeline.config.curation import CurationConfig
from pipeline.config.selection import KeepFraction
from pipeline.engine.run_folder import RunFolder
from pipeline.export import manifest
from pipeline.forecast.costs import StageTime
from pipeline.forecast.from_sample import Forecast, embedding_dim
from pipeline.forecast.stratified_estimates import Interval
from pipeline.records import KEPT, DropReason
from pipeline.selection.duplicates import exact
from pipeline.selection.unit_decisions import open_unit

N_PAIRS = (10**6, 10**9, 10**10)
N_WORKERS = (1, 100, 10_000)  # of one core each

# Bytes of a pair in `exact.Identities`: row, image hash, sample id.
_IDENTITY_BYTES = 8 + 16 + 16
# The most that a pair has in `exact.find_repeats`: beside the former unit and row, the
# order, sorted hash and id, and the ids that stay with their positions.
_REPEATS_BYTES = _IDENTITY_BYTES + (8 + 8) + 8 + (16 + 16) + (16 + 16 + 8 + 2)
_REPEAT_BYTES = 8 + 16  # of a pair in `exact.Repeats`: row, id that stays
# A number in a `tallies.Counts`, and the most of them that half a float32 can be.
_TALLY_BYTES = 8 + 8
_N_HALVES = 2**16
# What `tallies.sum_counts` holds: 4 tallies, joined, their order, sorted, differences.
_ADD_TALLIES_BYTES = 4 * (2 * _TALLY_BYTES + 8 + _TALLY_BYTES + 8)
# Upper halves of cosines that are not within 1/256 of zero.
_N_COSINE_HALVES = 2 * 8 * 2**7
_EMBEDDED_BYTES = 4 + 2  # a dimension in `scoring.UnitScores`: float32, then float16


@dataclasses.dataclass(frozen=True)
class PairCosts:
    """What one pair or one shard of the sample takes."""

    config: CurationConfig
    pairs_per_shard: float
    outcome_to_share: Mapping[str, float]
    captions_per_pair: float
    stage_to_cpu_s: Mapping[str, float]  # a pair; of `export` a kept pair
    embedding_dim: int
    decision_bytes: float  # a pair in a pickled `UnitDecisions`
    unit_bytes: int  # of a pickled `Unit`

    @classmethod
    def of(
        cls,
        sample: RunFolder,
        forecast: Forecast,
        stage_to_time: Mapping[str, StageTime],
    ) -> "PairCosts":
        unit = sample.units[0]
        decisions = open_unit(unit, sample)
        n_shards = sum(n for _, n in forecast.n_sampled_shards.values())
        captions = sum(i.estimate for i in forecast.name_to_captions.values())
        return cls(
            config=sample.config,
            pairs_per_shard=forecast.n_pairs.estimate / n_shards,
            outcome_to_share=_estimates(forecast.outcome_to_share),
            captions_per_pair=captions / forecast.n_pairs.estimate,
            stage_to_cpu_s={s: t.cpu_s_per_pair for s, t in stage_to_time.items()},
            embedding_dim=embedding_dim(sample),
            decision_bytes=len(pickle.dumps(decisions))
            / max(len(decisions.outcome), 1),
            unit_bytes=len(pickle.dumps(unit)),
        )

    def share_from(self, reason: DropReason) -> float:
        """Of the pairs that reach the step of a reason; it and later ones drop them."""
        reasons = list(DropReason)
        names = (KEPT, *reasons[reasons.index(reason) :])
        return sum(self.outcome_to_share[name] for name in names)


def _estimates(name_to_interval: Mapping[str, Interval]) -> dict[str, float]:
    return {name: interval.estimate for name, interval in name_to_interval.items()}


@dataclasses.dataclass(frozen=True)
class ScaleRow:
    """What a crawl of `n_pairs` takes; bytes and files of the run folder."""

    n_pairs: int
    n_source_shards: int
    workers_to_hours: Mapping[int, float]  # of all stages that were timed
    worker_bytes: Mapping[str, float]  # what one worker holds at its most, besides
    # the weights of models, by the place in the code that holds it
    shuffle_bytes: float
    n_files: int
    n_captions: float


def scale_row(costs: PairCosts, n_pairs: int) -> ScaleRow:
    """The row of one size of crawl, cut into shards as large as those of the sample."""
    n_shards = math.ceil(n_pairs / costs.pairs_per_shard)
    return ScaleRow(
        n_pairs=n_pairs,
        n_source_shards=n_shards,
        workers_to_hours={n: hours(costs, n_pairs, n) for n in N_WORKERS},
        worker_bytes=worker_bytes(costs, n_pairs),
        shuffle_bytes=shuffle_bytes(costs, n_pairs, n_shards),
        n_files=n_files(costs, n_pairs, n_shards),
        n_captions=costs.captions_per_pair * n_pairs,
    )


def hours(costs: PairCosts, n_pairs: int, n_workers: int) -> float:
    """One stage after the other; no worker does less than a shard.

    The unit of `score` and `select` is a source shard, that of `export` one of its own
    (`export.plan_shards`).
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
    """Place in the code to the most that it holds in memory at a time.

    `scoring.UnitScores` holds a shard, `exact.find_repeats` one of `N_PARTITIONS` of
    all pairs that reach it, `integer_counts.SumCounts` counts of all scores of a
    source.
    """
    selection = costs.config.selection
    embedded = costs.embedding_dim * _EMBEDDED_BYTES
    found = {
        "scoring.UnitScores": embedded * costs.pairs_per_shard,
        "unit_decisions.UnitDecisions": costs.decision_bytes * costs.pairs_per_shard,
    }
    if selection.drop_exact_duplicates:
        n_compared = costs.share_from(DropReason.EXACT_DUPLICATE) * n_pairs
        group = n_compared / exact.N_PARTITIONS
        found["exact.find_repeats"] = _REPEATS_BYTES * group
    if isinstance(selection.alignment, KeepFraction):
        n_scores = costs.share_from(DropReason.LOW_ALIGNMENT) * n_pairs
        n_halves = min(n_scores, _N_HALVES)
        found["integer_counts.SumCounts"] = _ADD_TALLIES_BYTES * n_halves
    return found


def shuffle_bytes(costs: PairCosts, n_pairs: int, n_shards: int) -> float:
    """What crosses shuffles: no image, and no embedding that is counted here.

    `exact.DropExactDuplicates` sends identities to groups, and repeats and decisions
    back to units; `quantiles.FindCuts` sends counts of the upper halves of a shard's
    scores, and then few of lower ones; the units themselves go through a `Reshuffle` a
    pass of `captioning.Caption` and one of `export.Export`. What
    `pool.DropLinked` sends to cells hangs on how the pool lies in them, so
    it is not counted: `forecast.global_steps` says so.
    """
    selection = costs.config.selection
    models = {g.checkpoint for g in costs.config.granularities}
    n_bytes = float(n_shards * costs.unit_bytes * (len(models) + 1))
    if selection.drop_exact_duplicates:
        n_compared = costs.share_from(DropReason.EXACT_DUPLICATE) * n_pairs
        n_repeats = costs.outcome_to_share[DropReason.EXACT_DUPLICATE] * n_pairs
        n_bytes += _IDENTITY_BYTES * n_compared + _REPEAT_BYTES * n_repeats
        n_bytes += costs.decision_bytes * n_pairs
    if isinstance(selection.alignment, KeepFraction):
        n_scores = costs.share_from(DropReason.LOW_ALIGNMENT) * costs.pairs_per_shard
        n_bytes += _TALLY_BYTES * min(n_scores, _N_COSINE_HALVES) * n_shards
    return n_bytes


def n_files(costs: PairCosts, n_pairs: int, n_shards: int) -> int:
    """Tables of all units and the training shards.

    A unit has one table of each of `RunFolder.pairs`, `languages`, `embeddings` and
    `decisions`, and for each descriptor one of `descriptions`; with granularities one
    of `flags`, and for each one of `captions`, of `caption_languages` and, if it is
    measured, of `caption_alignment`. A training shard has the files of
    `manifest.file_names`; ledgers, accounts and the manifest are not counted.
    """
    n_granularities = len(costs.config.granularities)
    n_each = 3 if costs.config.caption_quality.measure_alignment else 2
    n_tables = 4 + len(costs.config.selection.descriptors)
    n_tables += n_granularities * n_each + bool(n_granularities)
    n_kept = n_pairs * costs.outcome_to_share[KEPT]
    n_exported = math.ceil(n_kept / costs.config.export.samples_per_shard)
    return n_shards * n_tables + n_exported * len(manifest.file_names(["train"]))
