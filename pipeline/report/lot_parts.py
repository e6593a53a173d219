"""What the report takes from one lot: its counts, and the pairs that it may show.

In: the tables of a lot whose pairs are decided. Out: a small table of chosen pairs,
`RUN/report/parts-FINGERPRINT/<lot>.parquet`, and counts in its summary. A part holds
the pairs whose hashes are below bounds that follow from the ledger, so that all parts
together hold little more than one page needs. It is made again when the decisions on
the lot have changed.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import records
from pipeline.engine.run_folder import RunFolder
from pipeline.engine.summaries import read_folders
from pipeline.records import Decision, Drop, DropReason, Language, Pair
from pipeline.report import pair_facts
from pipeline.report.pair_facts import Match, PairFacts
from pipeline.report.sampling import PairLocation, SmallestKeys, hash_identities
from pipeline.selection.lot_decisions import OUTCOMES, outcome_codes, to_objects
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.tables import LotTables, from_table, to_table

N_EXAMPLES = 12  # of each outcome
N_READABLE, LANGUAGES = "n_readable", "languages"  # facts of a part
_DECISIONS, _BOUNDS = "decisions", "bounds"

_KEPT = OUTCOMES.index(records.KEPT)
_UNREADABLE = OUTCOMES.index(records.UNREADABLE)
# Pairs expected below a bound: enough that hardly ever too few are there.
_N_SAMPLE_EXPECTED = 1.25
_N_EXAMPLES_EXPECTED = 8
_MATCH = pa.struct([("name", pa.string()), ("similarity", pa.float64())])
_DROP = pa.struct(
    [
        ("reason", pa.string()),
        ("value", pa.float64()),
        ("threshold", pa.float64()),
        ("detail", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Which pairs a part holds: those with hashes below bounds."""

    n_sample: int  # and no more of a lot
    sample: float  # of hashes of images
    examples: tuple[float, ...]  # of hashes of ids, for each of OUTCOMES

    @classmethod
    def of(cls, outcome_to_count: Mapping[str, int], n_sample: int) -> "Bounds":
        """The bounds for a page on so many pairs of each outcome."""
        counts = [outcome_to_count.get(str(outcome), 0) for outcome in OUTCOMES]
        n_readable = sum(counts) - counts[_UNREADABLE]
        examples = (_bound(n, _N_EXAMPLES_EXPECTED * N_EXAMPLES) for n in counts)
        sample = _bound(n_readable, _N_SAMPLE_EXPECTED * n_sample)
        return cls(n_sample, sample, tuple(examples))

    def are_in(self, part: Sequence[float]) -> bool:
        """Whether a part with other bounds holds all pairs of these."""
        return all(a <= b for a, b in zip(self.to_json(), part, strict=True))

    def to_json(self) -> list[float]:
        return [self.n_sample, self.sample, *self.examples]


def _bound(n_pairs: int, n_expected: float) -> float:
    """A power of two, so that parts of a run that grows stay in use."""
    if n_pairs <= n_expected:
        return 1.0
    return 2.0 ** math.ceil(math.log2(n_expected / n_pairs))


def tables(run: RunFolder) -> LotTables:
    """The parts of a run."""
    name = f"parts-{run.decisions_fingerprint}"
    return LotTables(files.join(run.root, "report", name))


def find_missing(run: RunFolder, bounds: Bounds) -> list[Lot]:
    """Lots without a part of their present decisions that holds enough pairs."""
    decided, parts = read_folders([run.decisions.folder, tables(run).folder])
    return [
        lot
        for lot in run.lots
        if not _is_current(parts.get(lot.name), decided[lot.name], bounds)
    ]


def _is_current(
    part: Mapping[str, Any] | None, decided: Mapping[str, Any], bounds: Bounds
) -> bool:
    return (
        part is not None
        and part[_DECISIONS] == decided["sha256"]
        and bounds.are_in(part[_BOUNDS])
    )


@dataclasses.dataclass(frozen=True)
class PartMaker:
    """Makes the parts of a run, one lot at a time; knows no lots."""

    run: RunFolder
    parts: LotTables
    reader: pair_facts.Reader
    bounds: Bounds

    def make(self, lot: Lot) -> None:
        """Writes the part of a lot."""
        decisions = self.reader.decisions
        digest = decisions.read_summary(lot.name)["sha256"]
        outcome = outcome_codes(decisions.read(lot.name, ["outcome"]))
        row_to_sample_key = self._choose_sample(lot, outcome)
        row_to_example_key = self._choose_examples(lot, outcome)
        rows = sorted(row_to_sample_key.keys() | row_to_example_key.keys())
        facts = self.reader.read_lot(lot, 0, rows) if rows else []
        keys = {
            "sample_key": pa.array(map(row_to_sample_key.get, rows), pa.float64()),
            "example_key": pa.array(map(row_to_example_key.get, rows), pa.float64()),
        }
        counts = {
            _DECISIONS: digest,
            _BOUNDS: self.bounds.to_json(),
            N_READABLE: int((outcome != _UNREADABLE).sum()),
            LANGUAGES: self._count_languages(lot, outcome),
        }
        self.parts.replace(lot.name, pa.table(keys | _columns(facts)), counts)

    def _choose_sample(self, lot: Lot, outcome: np.ndarray) -> dict[int, float]:
        """Readable pairs with the smallest hashes of their images."""
        pairs = self.run.pairs(lot.source).read(lot.name, ["image_hash"])
        rows = np.flatnonzero(outcome != _UNREADABLE)
        hashes = pairs["image_hash"].take(pa.array(rows)).to_pylist()
        keys = hash_identities(hashes)
        return _smallest(self.bounds.n_sample, self.bounds.sample, rows, keys)

    def _choose_examples(self, lot: Lot, outcome: np.ndarray) -> dict[int, float]:
        """Pairs of each outcome with the smallest hashes of their ids."""
        pairs = self.run.pairs(lot.source).read(lot.name, ["sample_id"])
        keys = hash_identities(pairs["sample_id"].to_pylist())
        found: dict[int, float] = {}
        for code, bound in enumerate(self.bounds.examples):
            rows = np.flatnonzero(outcome == code)
            found |= _smallest(N_EXAMPLES, bound, rows, keys[rows])
        return found

    def _count_languages(
        self, lot: Lot, outcome: np.ndarray
    ) -> dict[str, tuple[int, int]]:
        """Code to the number of readable pairs, and of those that are kept."""
        languages = self.run.languages(lot.source).read(lot.name, ["code"])
        is_readable = outcome != _UNREADABLE
        codes = to_objects(languages["code"])[is_readable]
        n_pairs = collections.Counter(codes)
        n_kept = collections.Counter(codes[outcome[is_readable] == _KEPT])
        return {code: (n, n_kept[code]) for code, n in n_pairs.items()}


def _smallest(
    n: int, bound: float, rows: np.ndarray, keys: np.ndarray
) -> dict[int, float]:
    """Row to key of the `n` smallest keys and one more, all below a bound."""
    smallest = SmallestKeys(n)
    is_below = keys < bound
    smallest.add(0, rows[is_below], keys[is_below])
    return smallest.row_to_key()


def _columns(facts: Sequence[PairFacts]) -> dict[str, Any]:
    """Facts as columns; `from_parts` reads them."""
    structs: dict[str, Any] = {
        name: to_table([getattr(one, name) for one in facts], kind).to_struct_array()
        for name, kind in _NAME_TO_TYPE.items()
    }
    drops = [[d and dataclasses.asdict(d) for d in one.drops] for one in facts]
    matches = {
        name: [m and dataclasses.asdict(m) for m in map(get, facts)]
        for name, get in _NAME_TO_MATCH.items()
    }
    return {
        "row": pa.array([one.location.row for one in facts], pa.int64()),
        **structs,
        "n_words": pa.array([one.n_words for one in facts], pa.int64()),
        "alignment_score": pa.array(
            [one.alignment_score for one in facts], pa.float64()
        ),
        "drops": pa.array(drops, pa.list_(_DROP)),
        **{name: pa.array(found, _MATCH) for name, found in matches.items()},
    }


_NAME_TO_TYPE: Mapping[str, Any] = {
    "pair": Pair,
    "language": Language,
    "decision": Decision,
}
_NAME_TO_MATCH: Mapping[str, Any] = {
    "evaluation": lambda one: one.evaluation,
    "seed": lambda one: one.seed,
}


def from_parts(
    table: pa.Table, lots: Sequence[Lot], numbers: np.ndarray
) -> list[PairFacts]:
    """The pairs of parts in their order, each of the lot of its number."""
    structs = {
        name: from_table(pa.Table.from_struct_array(table[name]), kind)
        for name, kind in _NAME_TO_TYPE.items()
    }
    rest = ("row", "n_words", "alignment_score", "drops", *_NAME_TO_MATCH)
    columns = (table[name].to_pylist() for name in rest)
    rows = zip(numbers.tolist(), *structs.values(), *columns, strict=True)
    return [
        PairFacts(
            location=PairLocation(number, row),
            lot=lots[number],
            pair=pair,
            n_words=n_words,
            decision=decision,
            language=language,
            alignment_score=score,
            drops=tuple(map(_to_drop, drops)),
            evaluation=near and Match(**near),
            seed=seed and Match(**seed),
        )
        for (
            number,
            pair,
            language,
            decision,
            row,
            n_words,
            score,
            drops,
            near,
            seed,
        ) in rows
    ]


def _to_drop(found: Mapping[str, Any] | None) -> Drop | None:
    if found is None:
        return None
    return Drop(**{**found, "reason": DropReason(found["reason"])})
