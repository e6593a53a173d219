"""Bytes and tables of the stage select, for the forecast.

In: a run whose pairs are decided, and the size of a crawl. Out: what its tables take on
disk, what a worker holds in memory, and what crosses the shuffles.
"""

import dataclasses
import pickle
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.config.selection import KeepFraction, SelectionConfig
from pipeline.engine.run_folder import RunFolder
from pipeline.records import KEPT, DropReason
from pipeline.selection import quantiles
from pipeline.selection.duplicates import exact
from pipeline.selection.lot_decisions import open_lot
from pipeline.sources.shards import Lot
from pipeline.storage.tables import FILES_PER_TABLE


@dataclasses.dataclass(frozen=True)
class Crawl:
    """A crawl as the steps of `select` see it."""

    n_pairs: float
    n_lots: int
    pairs_per_lot: float
    outcome_to_share: Mapping[str, float]
    decision_bytes: float  # see `decision_bytes`

    def n_reaching(self, reason: DropReason) -> float:
        """Pairs that reach the step of a reason: it or a later one decides on them."""
        return self.n_pairs * self.share_reaching(reason)

    def share_reaching(self, reason: DropReason) -> float:
        """The share of all pairs that reach the step of a reason."""
        reasons = list(DropReason)
        outcomes = (KEPT, *reasons[reasons.index(reason) :])
        return sum(self.outcome_to_share[outcome] for outcome in outcomes)


def table_bytes(run: RunFolder, lots: Sequence[Lot]) -> np.ndarray:
    """Bytes of the decisions on each lot: int64 [lots]."""
    return run.decisions.sizes(lot.name for lot in lots)


def n_files(selection: SelectionConfig) -> int:
    """Files of one lot: its decisions, and its similarities to each set."""
    n_sets = bool(selection.evaluation_duplicates) + bool(selection.retrieval)
    return FILES_PER_TABLE * (1 + n_sets)


def decision_bytes(run: RunFolder) -> float:
    """Bytes per pair of the decisions on a lot as they travel between steps."""
    decisions = open_lot(run.lots[0], run)
    return len(pickle.dumps(decisions)) / max(len(decisions.outcome), 1)


def worker_bytes(selection: SelectionConfig, crawl: Crawl) -> dict[str, float]:
    """Peak memory of one worker, by what it holds.

    A worker holds the decisions on one lot, one of the groups in which exact
    duplicates are searched, and the counts of all scores of a source.
    """
    found = {"select: decisions on a lot": crawl.decision_bytes * crawl.pairs_per_lot}
    if selection.drop_exact_duplicates:
        n_compared = crawl.n_reaching(DropReason.EXACT_DUPLICATE)
        found["select: a group of exact duplicates"] = exact.group_bytes(n_compared)
    if isinstance(selection.alignment, KeepFraction):
        n_scores = crawl.n_reaching(DropReason.LOW_ALIGNMENT)
        found["select: counts of scores"] = quantiles.worker_bytes(n_scores)
    return found


def shuffle_bytes(selection: SelectionConfig, crawl: Crawl) -> float:
    """Bytes that cross shuffles, none of them of images.

    Exact duplicates send identities to groups, and repeats and decisions back to lots;
    a quantile sends counts of scores. The embeddings that near duplicates send to cells
    are not counted, as their number depends on how the pool is spread over the cells:
    `forecast` names this.
    """
    n_bytes = 0.0
    if selection.drop_exact_duplicates:
        n_compared = crawl.n_reaching(DropReason.EXACT_DUPLICATE)
        n_repeats = crawl.outcome_to_share[DropReason.EXACT_DUPLICATE] * crawl.n_pairs
        n_bytes += exact.shuffle_bytes(n_compared, n_repeats)
        n_bytes += crawl.decision_bytes * crawl.n_pairs
    if isinstance(selection.alignment, KeepFraction):
        share = crawl.share_reaching(DropReason.LOW_ALIGNMENT)
        per_lot = quantiles.shuffle_bytes(share * crawl.pairs_per_lot)
        n_bytes += per_lot * crawl.n_lots
    return n_bytes
