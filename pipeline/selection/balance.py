"""Balance: thins out what the pool has too much of.

A cap divides the pool into groups by nearest seed, cluster or concept, and counts them
over all shards. A pair in a group of `count` pairs is kept with probability p = min(1,
max_count / count), a pair in several groups with 1 - prod(1 - p), as in MetaCLIP
(arXiv:2309.16671, algorithm 1). The draw depends on the sample id and `rng_seed` alone.
The transforms map PCollection[LotDecisions] to PCollection[LotDecisions].
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsSingleton
from apache_beam.utils.shared import Shared

from pipeline.config.selection import Cap, CapPerCluster, CapPerConcept, CapPerSeed
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection.concepts import Concepts
from pipeline.selection.hashed_random import unit_hashes
from pipeline.selection.integer_counts import Counts, SumCounts
from pipeline.selection.lot_decisions import LotDecisions, read_rows
from pipeline.selection.search import kmeans, reference_sets, search_steps
from pipeline.selection.search.reference_sets import IndexFiles
from pipeline.storage import files

_TEXTS_AT_A_TIME = 10_000


@dataclasses.dataclass(frozen=True, eq=False)
class Grouped:
    """Decisions, and the groups of their droppable pairs."""

    decisions: LotDecisions
    row: np.ndarray  # int64 [m]; a pair may have several groups, or none
    group: np.ndarray  # int64 [m]
    group_to_name: Mapping[int, str]


class Balance(beam.PTransform):
    """Applies caps one after the other, each to the pairs that the others have kept.

    `seeds` are the seed sets of `CapPerSeed`. `run` must list its lots, which enter
    the names of the files of centroids.
    """

    def __init__(
        self, run: RunFolder, seeds: tuple[IndexFiles, ...], caps: tuple[Cap, ...]
    ) -> None:
        super().__init__()
        self._run = run
        self._seeds = seeds
        self._caps = caps

    def expand(self, decisions: beam.PCollection[LotDecisions]) -> beam.PCollection:
        run = self._run.without_lots()
        for i, cap in enumerate(self._caps):
            grouped = self._group(decisions, i, cap)
            counts = grouped | f"Find crowded, cap {i}" >> CountCrowded(cap.max_count)
            decisions = grouped | f"Thin groups, cap {i}" >> beam.Map(
                thin, run, cap, AsSingleton(counts)
            )
        return decisions

    def _group(
        self, decisions: beam.PCollection[LotDecisions], i: int, cap: Cap
    ) -> beam.PCollection[Grouped]:
        run = self._run.without_lots()
        match cap:
            case CapPerSeed():
                return decisions | f"Find seeds, cap {i}" >> beam.ParDo(
                    GroupBySeed(run, self._seeds)
                )
            case CapPerConcept(concepts):
                return decisions | f"Find concepts, cap {i}" >> beam.ParDo(
                    GroupByConcept(run, concepts)
                )
            case CapPerCluster():
                record = _record_path(self._run, i)
                train = kmeans.TrainCentroids(run, cap.training(), record)
                path = AsSingleton(decisions | f"Train centroids, cap {i}" >> train)
                return decisions | f"Find clusters, cap {i}" >> beam.ParDo(
                    GroupByCluster(run), path
                )


class CountCrowded(beam.PTransform):
    """Maps PCollection[Grouped] to the counts of the groups above `max_count`.

    Those are fewer than the images of the pool divided by `max_count`. Workers add up
    ranges of groups; only the crowded ones come together.
    """

    def __init__(self, max_count: int) -> None:
        super().__init__()
        self._max_count = max_count

    def expand(self, grouped: beam.PCollection[Grouped]) -> beam.PCollection[Counts]:
        return (
            grouped
            | "Count groups" >> beam.FlatMap(lambda g: Counts.of(g.group).by_range())
            | "Add groups" >> beam.CombinePerKey(SumCounts())
            | "Drop keys of ranges" >> beam.Values()
            | "Keep crowded" >> beam.Map(Counts.above, self._max_count)
            | "Join ranges" >> beam.CombineGlobally(SumCounts())
        )


def _record_path(run: RunFolder, i: int) -> str:
    """The path of the record of a cap's centroids, which `max_count` does not enter."""
    selection = run.config.selection
    training = dataclasses.replace(selection.balance[i], max_count=1)
    caps = (*selection.balance[:i], training)
    config = dataclasses.replace(
        run.config, selection=dataclasses.replace(selection, balance=caps)
    )
    pool = dataclasses.replace(run, config=config)
    return files.join(run.root, "clusters", f"{pool.pool_fingerprint}.json")


class GroupBySeed(search_steps.DoFnWithSets):
    """Groups images by the nearest seed of all sets."""

    def __init__(self, run: RunFolder, sets: tuple[IndexFiles, ...]) -> None:
        super().__init__(sets)
        self._run = run

    def process(self, decisions: LotDecisions) -> Iterator[Grouped]:
        sets = self.sets()
        rows = decisions.droppable_rows
        found = reference_sets.find_nearest(sets, self._run, decisions, rows)
        has_embedding = np.flatnonzero(~np.isnan(found.best_similarity))
        best = found.similarity[:, has_embedding].argmax(axis=0)
        sizes = [len(reference_set.keys) for reference_set in sets]
        group = np.cumsum([0, *sizes])[best] + found.image[best, has_embedding]
        groups, one = np.unique(group, return_index=True)
        names = found.best_names(has_embedding[one])
        group_to_name = dict(zip(groups.tolist(), names, strict=True))
        yield Grouped(decisions, rows[has_embedding], group, group_to_name)


class GroupByCluster(kmeans.DoFnWithCentroids):
    """Groups images by the nearest centroid."""

    def __init__(self, run: RunFolder) -> None:
        super().__init__()
        self._run = run

    def process(self, decisions: LotDecisions, path: str) -> Iterator[Grouped]:
        rows, group = kmeans.nearest_to_rows(
            self.centroids(path), self._run, decisions, decisions.droppable_rows
        )
        group_to_name = {c: f"cluster {c}" for c in np.unique(group).tolist()}
        yield Grouped(decisions, rows, group, group_to_name)


class GroupByConcept(beam.DoFn):
    """Groups pairs by the concepts in their alt text; a worker reads the list once."""

    def __init__(self, run: RunFolder, path: str) -> None:
        self._run = run
        self._path = path
        self._shared = Shared()

    def setup(self) -> None:
        # `Shared` holds a weak reference; this one keeps the list while the DoFn lives.
        self._concepts = self._shared.acquire(lambda: Concepts.load(self._path))

    def process(self, decisions: LotDecisions) -> Iterator[Grouped]:
        rows = decisions.droppable_rows
        tables = self._run.pairs(decisions.lot.source)
        texts = read_rows(tables, decisions, rows, "alt_text")["alt_text"]
        counts, numbers = [rows[:0]], [rows[:0]]
        for start in range(0, len(texts), _TEXTS_AT_A_TIME):
            some = texts.slice(start, _TEXTS_AT_A_TIME).to_pylist()
            found = [self._concepts.find(text) for text in some]
            counts.append(np.array([len(n) for n in found], np.int64))
            numbers.append(np.array([*itertools.chain(*found)], np.int64))
        row, group = np.repeat(rows, np.concatenate(counts)), np.concatenate(numbers)
        group_to_name = {n: self._concepts.names[n] for n in np.unique(group).tolist()}
        yield Grouped(decisions, row, group, group_to_name)


def thin(grouped: Grouped, run: RunFolder, cap: Cap, counts: Counts) -> LotDecisions:
    """Drops pairs whose draw is not below their probability.

    `counts` are those of groups above `max_count`; the others lose nothing.

    The value of a decision is the probability, the threshold the draw in [0, 1), and
    the detail the smallest group of the pair.
    """
    decisions = grouped.decisions
    rows = decisions.droppable_rows
    is_certain = not isinstance(cap, CapPerConcept) or cap.keep_unmatched
    probability = probabilities(grouped, cap.max_count, counts)[rows]
    probability = np.where(np.isnan(probability), float(is_certain), probability)
    tables = run.pairs(decisions.lot.source)
    ids = read_rows(tables, decisions, rows, "sample_id")["sample_id"].to_pylist()
    draw = unit_hashes(ids, f"{type(cap).__name__} {cap.rng_seed}")
    fails = draw >= probability
    return decisions.drop(
        rows[fails],
        DropReason.BALANCE,
        value=probability[fails],
        threshold=draw[fails],
        detail=_smallest_groups(grouped, counts, rows[fails]),
    )


def probabilities(grouped: Grouped, max_count: int, counts: Counts) -> np.ndarray:
    """The probability to keep each pair of a lot: float64 [n]; NaN without a group."""
    share = max_count / np.maximum(counts.count_of(grouped.group), max_count)
    n_pairs = len(grouped.decisions.outcome)
    loss = np.ones(n_pairs)
    np.multiply.at(loss, grouped.row, 1 - share)
    has_group = np.zeros(n_pairs, dtype=bool)
    has_group[grouped.row] = True
    return np.where(has_group, 1 - loss, np.nan)


def _smallest_groups(grouped: Grouped, counts: Counts, rows: np.ndarray) -> list[str]:
    """The name of the smallest group of each row; of equal ones, the first."""
    count = counts.count_of(grouped.group)
    order = np.lexsort((-np.arange(len(count)), -count))  # takes its last key first
    groups = grouped.row[order].tolist(), grouped.group[order].tolist()
    row_to_group = dict(zip(*groups, strict=True))  # the last one counts
    found = [row_to_group.get(row) for row in rows.tolist()]
    return ["no concept" if g is None else grouped.group_to_name[g] for g in found]


def check(run: RunFolder) -> None:
    """Raises ValueError on a cap without its seed sets or its list of concepts."""
    for cap in run.config.selection.balance:
        if isinstance(cap, CapPerSeed) and not run.seed_lots:
            raise ValueError(f"balance={cap}: expected seed sets")
        if isinstance(cap, CapPerConcept):
            Concepts.load(cap.concepts)
