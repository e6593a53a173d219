"""Tables of errors: a row for each pair that a stage could not process.

In: the pairs of a lot that failed, and why. Out: RUN/errors/<stage>/<lot>.parquet, with
a summary that counts the reasons. The table of a lot says how its last attempt ended:
a lot without failures has none.
"""

import collections
import dataclasses
import os
import socket
from collections.abc import Iterable, Mapping

from pipeline.records import Pair
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.tables import LotTables, to_table
from recipes.safe_text import visible

REASONS = "reasons"  # in a summary: a reason in short to its number of pairs


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A pair that a stage could not process."""

    stage: str
    lot: str
    shard: str  # its path
    sample_id: bytes
    reason: str
    worker: str  # host and process, where its log is

    @classmethod
    def of(cls, stage: str, lot: Lot, pair: Pair, error: Exception) -> "Failure":
        """The failure of a pair on this worker."""
        uri = lot.shards[pair.shard].uri
        reason = str(error).removeprefix(uri).removeprefix(":").strip()
        worker = f"{socket.gethostname()}-{os.getpid()}"
        return cls(
            *(stage, lot.name, visible(uri), pair.sample_id, visible(reason), worker)
        )

    @property
    def short_reason(self) -> str:
        """The reason without what tells one pair from another."""
        return self.reason.partition(": ")[0]


def tables(root: str, stage: str) -> LotTables:
    """The tables of `Failure` of a stage."""
    return LotTables(files.join(root, "errors", stage))


def count_reasons(failures: Iterable[Failure]) -> dict[str, int]:
    """Reason in short to the number of pairs, by reason."""
    counts = collections.Counter(failure.short_reason for failure in failures)
    return dict(sorted(counts.items()))


def write(root: str, stage: str, lot: str, failures: Iterable[Failure]) -> None:
    """Replaces the table of a lot; without failures it goes."""
    rows = sorted(failures, key=lambda row: (row.shard, row.sample_id))
    found = tables(root, stage)
    if rows:
        reasons = {REASONS: count_reasons(rows)}
        found.replace(lot, to_table(rows, Failure), reasons)
    elif found.has(lot):
        found.delete([lot])


def expect_few(
    root: str,
    stage: str,
    reason_to_n: Mapping[str, int],
    n_tried: int,
    max_share: float,
) -> None:
    """Raises ValueError if more pairs failed than the recipe allows.

    Args:
      reason_to_n: how many pairs failed, by reason in short.
      n_tried: pairs that the stage had to process.
      max_share: the recipe's `max_failed_share`.
    """
    n_failed = sum(reason_to_n.values())
    if n_failed > max_share * n_tried:
        reasons = ", ".join(f"{n:,} x {reason}" for reason, n in reason_to_n.items())
        raise ValueError(
            f"max_failed_share={max_share:g}: expected at most that share of"
            f" {n_tried:,} images to fail in `{stage}`, but {n_failed:,} did"
            f" ({reasons}); {tables(root, stage).folder} names them"
        )
