"""One pass over the lots of a run: it picks examples and counts pairs.

In: a run whose pairs are decided. Out: examples and the sample with what is known of
them, and counts of all pairs. Reads the parts of the report, which are small.
"""

import collections
import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine.run_folder import RunFolder
from pipeline.engine.summaries import Summaries
from pipeline.report import joined_parts, lot_parts
from pipeline.report.lot_parts import (
    LANGUAGES,
    N_EXAMPLES,
    N_READABLE,
    Bounds,
    PartMaker,
    from_parts,
)
from pipeline.report.pair_facts import PairFacts, Reader, References
from pipeline.report.sampling import PairLocation, SmallestKeys
from pipeline.selection.lot_decisions import OUTCOMES
from pipeline.storage.prefetch import map_ahead

_N_LOTS_AHEAD = 1  # of which parts are made here


@dataclasses.dataclass(frozen=True)
class LanguageCount:
    """Readable pairs in one language, and how many of them are kept."""

    n_pairs: int = 0
    n_kept: int = 0


@dataclasses.dataclass(frozen=True)
class Scan:
    """The result of a pass over all pairs."""

    n_readable: int
    outcome_to_examples: Mapping[str, list[PairLocation]]  # random pairs by outcome
    sample: list[PairLocation]  # readable pairs; all pairs of an image, or none
    code_to_count: Mapping[str, LanguageCount]  # most frequent first

    @property
    def is_census(self) -> bool:
        """Whether the sample holds every readable pair."""
        return len(self.sample) == self.n_readable


def scan_decisions(
    run: RunFolder, bounds: Bounds, references: References
) -> tuple[Scan, dict[PairLocation, PairFacts]]:
    """Scans all lots of a run, and gives what is known of the pairs of the scan.

    Makes the parts of lots that lack theirs.
    """
    summaries = _make_missing(run, bounds, references)
    examples = {str(outcome): SmallestKeys(N_EXAMPLES) for outcome in OUTCOMES}
    sample = SmallestKeys(bounds.n_sample)
    languages: collections.Counter[tuple[str, bool]] = collections.Counter()
    n_readable = 0
    for lot in run.lots:
        summary = summaries[lot.name]
        n_readable += summary[N_READABLE]
        for code, (n_pairs, n_kept) in summary[LANGUAGES].items():
            languages[code, True] += n_kept
            languages[code, False] += n_pairs - n_kept
    table, numbers = joined_parts.read(lot_parts.tables(run), summaries, run.lots)
    _add_smallest(sample, numbers, table, "sample_key", bounds.sample)
    outcomes = pc.struct_field(table["decision"], "outcome")
    for outcome in pc.unique(outcomes).to_pylist():
        is_of = pc.equal(outcomes, outcome)
        of_rows = numbers[is_of.to_numpy()]
        _add_smallest(
            examples[outcome], of_rows, table.filter(is_of), "example_key", np.inf
        )
    facts = from_parts(table, run.lots, numbers)
    location_to_facts = {one.location: one for one in facts}
    scan = Scan(
        n_readable=n_readable,
        outcome_to_examples={name: one.locations() for name, one in examples.items()},
        sample=sample.whole_groups(),
        code_to_count=_group_by_code(languages),
    )
    shown = (*scan.sample, *itertools.chain(*scan.outcome_to_examples.values()))
    return scan, {location: location_to_facts[location] for location in shown}


def _make_missing(run: RunFolder, bounds: Bounds, references: References) -> Summaries:
    """Makes the parts that are missing; gives the summaries of all."""
    reader = Reader(run, run.decisions, references)
    maker = PartMaker(run, lot_parts.tables(run), reader, bounds)
    missing = lot_parts.find_missing(run, bounds)
    for _ in map_ahead(maker.make, missing, _N_LOTS_AHEAD):
        pass
    found = Summaries.read(maker.parts.folder)
    found.write_cache()
    return found


def _add_smallest(
    smallest: SmallestKeys,
    numbers: np.ndarray,
    table: pa.Table,
    key: str,
    bound: float,
) -> None:
    """Adds the rows of parts that have a key below a bound."""
    keys = table[key].to_numpy()  # NaN where there is none
    is_below = keys < bound
    rows = table["row"].to_numpy()[is_below]
    smallest.add(numbers[is_below], rows, keys[is_below])


def _group_by_code(
    languages: collections.Counter[tuple[str, bool]],
) -> dict[str, LanguageCount]:
    found = {
        code: LanguageCount(
            languages[code, False] + languages[code, True], languages[code, True]
        )
        for code, _ in languages
    }
    return dict(sorted(found.items(), key=lambda item: (-item[1].n_pairs, item[0])))
