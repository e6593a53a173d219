"""One pass over the decisions of a run: what to look at, and what can be counted.

In: a run whose pairs are decided on. Out: places of examples and of the sample, and
counts of all pairs. Reads one unit at a time, and of it a few narrow columns.
"""

import collections
import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import records
from pipeline.engine.run_folder import RunFolder
from pipeline.report.sampling import Place, Smallest, hashes
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
    """What a pass over all pairs has found."""

    n_readable: int
    outcome_to_examples: Mapping[str, list[Place]]  # random ones, by outcome
    sample: list[Place]  # of readable pairs; pairs of one image are in it together
    code_to_count: Mapping[str, LanguageCount]  # most frequent first

    @property
    def is_census(self) -> bool:
        """Whether the sample is all readable pairs."""
        return len(self.sample) == self.n_readable


def scan(run: RunFolder, n_examples: int, n_sample: int) -> Scan:
    """Goes over all units of a run."""
    examples = [Smallest(n_examples) for _ in OUTCOMES]
    sample = Smallest(n_sample)
    languages: collections.Counter[tuple[str, bool]] = collections.Counter()
    n_readable, decisions = 0, run.decisions
    for number, unit in enumerate(run.units):
        pairs = run.pairs(unit.source).read(unit.name, ["sample_id", "image_hash"])
        outcome = outcome_codes(decisions, unit)
        keys = hashes(pairs["sample_id"].to_pylist())
        for code, smallest in enumerate(examples):
            rows = np.flatnonzero(outcome == code)
            smallest.add(number, rows, keys[rows])
        readable = np.flatnonzero(outcome != _UNREADABLE)
        image_hashes = pairs["image_hash"].take(pa.array(readable)).to_pylist()
        sample.add(number, readable, hashes(image_hashes))
        languages.update(_languages(run, unit, outcome))
        n_readable += len(readable)
    return Scan(
        n_readable=n_readable,
        outcome_to_examples={
            str(outcome): found.places()
            for outcome, found in zip(OUTCOMES, examples, strict=True)
        },
        sample=sample.whole_groups(),
        code_to_count=_by_code(languages),
    )


def outcome_codes(decisions: UnitTables, unit: Unit) -> np.ndarray:
    """Positions in OUTCOMES, one a pair."""
    table = decisions.read(unit.name, ["outcome"])
    return pc.index_in(table["outcome"], pa.array(OUTCOMES, pa.string())).to_numpy()


def _languages(
    run: RunFolder, unit: Unit, outcome: np.ndarray
) -> collections.Counter[tuple[str, bool]]:
    """Counts of (code, is kept) of the readable pairs of a unit."""
    codes = to_objects(run.languages(unit.source).read(unit.name, ["code"])["code"])
    is_readable = outcome != _UNREADABLE
    is_kept = outcome[is_readable] == _KEPT
    return collections.Counter(zip(codes[is_readable], is_kept.tolist(), strict=True))


def _by_code(
    languages: collections.Counter[tuple[str, bool]],
) -> dict[str, LanguageCount]:
    found = {
        code: LanguageCount(
            languages[code, False] + languages[code, True], languages[code, True]
        )
        for code, _ in languages
    }
    return dict(sorted(found.items(), key=lambda item: (-item[1].n_pairs, item[0])))
