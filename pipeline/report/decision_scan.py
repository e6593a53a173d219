"""One pass over the decisions of a run: it picks examples and counts pairs.

In: a run whose pairs are decided. Out: locations of examples and of the sample, and
counts of all pairs. Reads a few narrow columns of one unit at a time.
"""

import collections
import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import records
from pipeline.engine.run_folder import RunFolder
from pipeline.report.sampling import PairLocation, SmallestKeys, hash_identities
from pipeline.selection.unit_decisions import OUTCOMES, to_objects
from pipeline.sources.shards import Unit
from pipeline.storage.tables import UnitTables

_KEPT = OUTCOMES.index(records.KEPT)
_UNREADABLE = OUTCOMES.index(records.UNREADABLE)


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


def scan_decisions(run: RunFolder, n_examples: int, n_sample: int) -> Scan:
    """Scans all units of a run.

    Args:
      run: A run with decisions.
      n_examples: Examples to pick for each outcome.
      n_sample: Readable pairs to sample, at most.
    """
    examples = [SmallestKeys(n_examples) for _ in OUTCOMES]
    sample = SmallestKeys(n_sample)
    languages: collections.Counter[tuple[str, bool]] = collections.Counter()
    n_readable, decisions = 0, run.decisions
    for number, unit in enumerate(run.units):
        pairs = run.pairs(unit.source).read(unit.name, ["sample_id", "image_hash"])
        outcome = outcome_codes(decisions, unit)
        keys = hash_identities(pairs["sample_id"].to_pylist())
        for code, smallest in enumerate(examples):
            rows = np.flatnonzero(outcome == code)
            smallest.add(number, rows, keys[rows])
        readable = np.flatnonzero(outcome != _UNREADABLE)
        image_hashes = pairs["image_hash"].take(pa.array(readable)).to_pylist()
        sample.add(number, readable, hash_identities(image_hashes))
        languages.update(_count_languages(run, unit, outcome))
        n_readable += len(readable)
    return Scan(
        n_readable=n_readable,
        outcome_to_examples={
            str(outcome): found.locations()
            for outcome, found in zip(OUTCOMES, examples, strict=True)
        },
        sample=sample.whole_groups(),
        code_to_count=_group_by_code(languages),
    )


def outcome_codes(decisions: UnitTables, unit: Unit) -> np.ndarray:
    """Positions in OUTCOMES, one per pair: int [n]."""
    table = decisions.read(unit.name, ["outcome"])
    return pc.index_in(table["outcome"], pa.array(OUTCOMES, pa.string())).to_numpy()


def _count_languages(
    run: RunFolder, unit: Unit, outcome: np.ndarray
) -> collections.Counter[tuple[str, bool]]:
    """Counts the readable pairs of a unit by (code, is kept)."""
    codes = to_objects(run.languages(unit.source).read(unit.name, ["code"])["code"])
    is_readable = outcome != _UNREADABLE
    is_kept = outcome[is_readable] == _KEPT
    return collections.Counter(zip(codes[is_readable], is_kept.tolist(), strict=True))


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
