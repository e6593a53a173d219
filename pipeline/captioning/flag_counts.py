"""How many captions are flagged, once all of them have been looked at.

In: the table of flags. Out: counts by granularity and flag.
"""

import collections
import dataclasses
from collections.abc import Mapping

from pipeline.engine.run_folder import RunFolder


def is_complete(run: RunFolder) -> bool:
    """Whether all captions that are there have their flags; reads listings only."""
    return run.flags.unit_names() >= {unit.name for unit in run.units}


@dataclasses.dataclass(frozen=True)
class FlagCounts:
    """What is flagged of one granularity."""

    n_captions: int
    n_flagged: int
    flag_to_count: Mapping[str, int]


def counts(run: RunFolder) -> dict[str, FlagCounts]:
    """Granularity to counts; empty unless all captions have their flags."""
    if not run.config.granularities or not is_complete(run):
        return {}
    tables = run.flags
    found: dict[str, list[tuple[str, ...]]] = collections.defaultdict(list)
    for unit in run.units:
        table = tables.read(unit.name, ["granularity", "flags"])
        for row in table.to_pylist():
            found[row["granularity"]].append(row["flags"])
    return {
        granularity: FlagCounts(
            n_captions=len(rows),
            n_flagged=sum(bool(flags) for flags in rows),
            flag_to_count=collections.Counter(f for flags in rows for f in flags),
        )
        for granularity, rows in found.items()
    }
