"""Everything known about a few pairs, read from the tables of their lots.

In: locations of pairs. Out: `PairFacts`. They include measures that the tables of
decisions do not have: which rules would drop the pair if it reached them, and its
nearest evaluation and seed images.
"""

import dataclasses
import itertools
import typing
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.config.selection import NearSeeds
from pipeline.engine.run_folder import RunFolder
from pipeline.records import Decision, Drop, Language, Pair
from pipeline.report.sampling import PairLocation
from pipeline.selection.lot_decisions import open_lot
from pipeline.selection.rules import count_words
from pipeline.sources.shards import Lot, Shard
from pipeline.storage.prefetch import map_ahead
from pipeline.storage.tables import LotTables, Row, from_table

if typing.TYPE_CHECKING:
    from pipeline.selection.search.reference_sets import (
        IndexFiles,
        NearestImages,
        ReferenceSet,
    )

UNDECIDED = "undecided"  # the outcome before `select`

_N_LOTS_AHEAD = 8  # that are read ahead
_MAX_CHARS = 2000  # of an alt text that is kept in memory


@dataclasses.dataclass(frozen=True)
class Match:
    """The nearest image of some sets."""

    name: str  # <set>:<key>
    similarity: float  # cosine; NaN for a pair without an embedding


@dataclasses.dataclass(frozen=True)
class PairFacts:
    """A pair with everything that the tables say about it."""

    location: PairLocation
    lot: Lot
    pair: Pair  # a long alt text is cut
    n_words: int  # of the whole alt text
    decision: Decision
    language: Language
    alignment_score: float  # NaN if not measured
    drops: tuple[Drop | None, ...] = ()  # one per rule; () for an unreadable pair
    evaluation: Match | None = None  # None if there are no sets to compare with
    seed: Match | None = None

    @property
    def shard(self) -> Shard:
        """The source shard that holds the pair."""
        return self.lot.shards[self.pair.shard]


@dataclasses.dataclass(frozen=True)
class References:
    """The evaluation and seed images of a run, opened for search."""

    evaluation: Sequence["ReferenceSet"] = ()
    seeds: Sequence["ReferenceSet"] = ()

    @classmethod
    def open(cls, run: RunFolder) -> "References":
        """Opens the sets that `select` compares with; builds missing indexes."""
        return cls.of(*find_indexes(run))

    @classmethod
    def of(
        cls, evaluation: Sequence["IndexFiles"], seeds: Sequence["IndexFiles"]
    ) -> "References":
        """Opens indexes."""
        # FAISS: only what searches pays for its import.
        from pipeline.selection.search.reference_sets import ReferenceSet

        sets = (tuple(map(ReferenceSet.open, paths)) for paths in (evaluation, seeds))
        return cls(*sets)

    @property
    def n_products(self) -> int:
        """Multiplications needed to compare one pair with all images."""
        sets = (*self.evaluation, *self.seeds)
        return sum(one.index.ntotal * one.index.d for one in sets)


def find_indexes(
    run: RunFolder,
) -> tuple[tuple["IndexFiles", ...], tuple["IndexFiles", ...]]:
    """Indexes of the evaluation and seed sets; builds those that are missing."""
    from pipeline.selection.search import index_builder  # FAISS, as above

    selection = run.config.selection
    evaluation: tuple[IndexFiles, ...] = ()
    seeds: tuple[IndexFiles, ...] = ()
    if selection.max_evaluation_similarity is not None:
        evaluation = index_builder.build(
            "evaluation_sets",
            run,
            run.evaluation_lots,
            max_exact=selection.max_exact_set,
        )
    if selection.retrieval is not None:
        is_searched = isinstance(selection.retrieval, NearSeeds)
        max_exact = selection.max_exact_set if is_searched else None
        seeds = index_builder.build(
            "seed_sets", run, run.seed_lots, max_exact=max_exact
        )
    return evaluation, seeds


def read_pairs(
    run: RunFolder,
    locations: Iterable[PairLocation],
    references: References | None = None,
) -> dict[PairLocation, PairFacts]:
    """Reads the facts of pairs, in any order and of any lots.

    Without `references` no nearest images are searched.
    """
    reader = Reader(run, run.decisions, references)
    in_order = itertools.groupby(sorted(set(locations)), lambda one: one.lot)
    lots = ((number, [one.row for one in group]) for number, group in in_order)
    facts = map_ahead(
        lambda lot: reader.read_lot(run.lots[lot[0]], *lot), lots, _N_LOTS_AHEAD
    )
    return {one.location: one for one in itertools.chain.from_iterable(facts)}


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads pairs of one lot, which has a number.

    It holds the tables of decisions, as their fingerprint takes the names of all lots.
    """

    run: RunFolder
    decisions: LotTables
    references: References | None

    def read_lot(self, lot: Lot, number: int, rows: list[int]) -> list[PairFacts]:
        """Reads the pairs of some rows, which ascend."""
        run = self.run
        pairs = _read_rows(run.pairs(lot.source), lot, rows, Pair)
        languages = _read_rows(run.languages(lot.source), lot, rows, Language)
        decisions = self._read_decisions(lot, rows, pairs)
        scores = run.embeddings(lot.source).take(lot.name, rows, ["alignment_score"])
        scores = scores["alignment_score"].to_pylist()
        matches = _find_matches(run, lot, np.array(rows), self.references)
        columns = zip(rows, pairs, languages, decisions, scores, matches, strict=True)
        found = []
        for row, pair, language, decision, score, (evaluation, seed) in columns:
            rules = () if pair.error else run.config.selection.drop_rules
            one = PairFacts(
                location=PairLocation(number, row),
                lot=lot,
                pair=dataclasses.replace(pair, alt_text=pair.alt_text[:_MAX_CHARS]),
                n_words=count_words(pair.alt_text),
                decision=decision,
                language=language,
                alignment_score=score,
                drops=tuple(rule(pair) for rule in rules),
                evaluation=evaluation,
                seed=seed,
            )
            found.append(one)
        return found

    def _read_decisions(
        self, lot: Lot, rows: list[int], pairs: Sequence[Pair]
    ) -> list[Decision]:
        try:
            return _read_rows(self.decisions, lot, rows, Decision)
        except FileNotFoundError:
            unknown = (UNDECIDED, None, None, "", ())
            return [Decision(pair.sample_id, *unknown) for pair in pairs]


def _read_rows(
    tables: LotTables, lot: Lot, rows: list[int], row_type: type[Row]
) -> list[Row]:
    return from_table(tables.take(lot.name, rows), row_type)


def _find_matches(
    run: RunFolder, lot: Lot, rows: np.ndarray, references: References | None
) -> list[tuple[Match | None, Match | None]]:
    """Nearest evaluation and seed image of each row; rows ascend."""
    if references is None:
        return [(None, None)] * len(rows)
    both = (*references.evaluation, *references.seeds)
    if not both:
        return [(None, None)] * len(rows)
    from pipeline.selection.search import reference_sets  # FAISS, as above

    found = reference_sets.find_nearest(both, run, open_lot(lot, run), rows)
    n = len(references.evaluation)
    halves = (
        reference_sets.NearestImages(
            both[part], found.similarity[part], found.image[part]
        )
        for part in (slice(None, n), slice(n, None))
    )
    evaluation, seeds = (_best_matches(half, len(rows)) for half in halves)
    return list(zip(evaluation, seeds, strict=True))


def _best_matches(nearest: "NearestImages", n_rows: int) -> list[Match | None]:
    if not nearest.sets:
        return [None] * n_rows
    names = nearest.best_names(np.arange(n_rows))
    similarity = nearest.best_similarity.tolist()
    return [Match(*match) for match in zip(names, similarity, strict=True)]
