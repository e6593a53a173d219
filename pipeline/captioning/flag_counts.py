"""Counts captions and flags, once all captions of a run are checked.

In: the summaries of the tables of flags. Out: counts by granularity and flag. Imports
neither Beam nor a model, so that `status` can use it.
"""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline.engine.run_folder import RunFolder
from pipeline.engine.summaries import Summaries
from pipeline.storage import files
from pipeline.storage.json_files import read_json

RECEIPT_NAME = "complete.json"  # beside the tables: for which inputs all are there
INPUTS, KEPT_PAIRS, COUNTS = "inputs", "kept", "granularities"  # in summaries
LENGTHS = "lengths"  # granularity to how many captions have so many words


def is_complete(run: RunFolder) -> bool:
    """Whether all captions have been checked; lists folders, and reads no table."""
    receipt = read_json(files.join(run.flags.folder, RECEIPT_NAME))
    if receipt is None or receipt[INPUTS] != run.flag_inputs_fingerprint:
        return False
    names = {lot.name for lot in run.lots}
    return run.flags.lot_names(known=names) >= names


@dataclasses.dataclass
class FlagCounts:
    """Captions of one granularity, of kept pairs, and how many are flagged."""

    n_captions: int = 0
    n_flagged: int = 0
    flag_to_count: Mapping[str, int] = dataclasses.field(
        default_factory=collections.Counter
    )
    n_pairs: int = 0  # with a caption

    def add(self, other: "FlagCounts") -> "FlagCounts":
        """The sum of both."""
        return FlagCounts(
            self.n_captions + other.n_captions,
            self.n_flagged + other.n_flagged,
            collections.Counter(self.flag_to_count)
            + collections.Counter(other.flag_to_count),
            self.n_pairs + other.n_pairs,
        )


def read_summaries(run: RunFolder) -> list[dict[str, Any]]:
    """The summaries of the flags of a run's lots."""
    summaries = Summaries.read(run.flags.folder)
    return [summaries[lot.name] for lot in run.lots]


def count_flags(run: RunFolder) -> dict[str, FlagCounts]:
    """Counts flags by granularity; empty unless all captions are checked."""
    if not run.config.granularities or not is_complete(run):
        return {}
    return sum_counts(read_summaries(run))


def sum_counts(summaries: list[dict[str, Any]]) -> dict[str, FlagCounts]:
    """The counts of all lots together, by granularity."""
    found: dict[str, FlagCounts] = {}
    for summary in summaries:
        for name, counts in summary[COUNTS].items():
            found[name] = found.get(name, FlagCounts()).add(FlagCounts(**counts))
    return found
