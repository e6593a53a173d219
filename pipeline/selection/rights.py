"""Pairs that must not be used: owners' opt-outs and the entries of a drop list.

The transform maps PCollection[UnitDecisions] to PCollection[UnitDecisions]. It comes
before all other steps of `select`, and also drops pairs of sources with `keep_all`.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow.compute as pc
from apache_beam.utils.shared import Shared

from pipeline.engine.counters import add_to_counter
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection.unit_decisions import UnitDecisions, read_rows
from pipeline.sources import drop_lists
from pipeline.sources.drop_lists import DropList
from pipeline.sources.robots import opt_out
from pipeline.storage import files


class DropForbidden(beam.PTransform):
    """Drops pairs whose owner opted out, and pairs that the drop list names."""

    def __init__(self, run: RunFolder, directives: tuple[str, ...]) -> None:
        super().__init__()
        self._run = run
        self._directives = directives

    def expand(self, decisions: beam.PCollection[UnitDecisions]) -> beam.PCollection:
        if self._directives:
            decisions = decisions | "Honor opt-outs" >> beam.Map(
                drop_opt_outs, self._run, self._directives
            )
        if self._run.drop_list:
            table = drop_lists.build(self._run.drop_list, self._run.root)
            decisions = decisions | "Look up drop list" >> beam.ParDo(
                _LookUp(self._run, table)
            )
        return decisions


def drop_opt_outs(
    decisions: UnitDecisions, run: RunFolder, directives: Sequence[str]
) -> UnitDecisions:
    """Drops pairs that have one of the directives; the detail names it."""
    rows = decisions.kept_rows
    table = read_rows(run.pairs(decisions.unit.source), decisions, rows, "robots")
    robots = table["robots"].combine_chunks().dictionary_encode()
    found = [opt_out(text, directives) for text in robots.dictionary.to_pylist()]
    details = np.array(found, dtype=object).take(robots.indices)
    is_out = details != ""
    return decisions.drop(rows[is_out], DropReason.OPT_OUT, detail=details[is_out])


def drop_listed(
    decisions: UnitDecisions, run: RunFolder, listed: DropList
) -> UnitDecisions:
    """Drops pairs that an entry of the list names; the detail is the kind of entry.

    Counts pairs `without_url`, which no address of the list can match.
    """
    rows = decisions.kept_rows
    columns = ("url", "image_hash", "sample_id")
    pairs = read_rows(run.pairs(decisions.unit.source), decisions, rows, *columns)
    without_url = int(pc.sum(pc.equal(pairs["url"], "")).as_py() or 0)
    add_to_counter("select", "without_url", without_url)
    kinds = listed.kinds_of(pairs)
    is_out = kinds != ""
    return decisions.drop(rows[is_out], DropReason.DROP_LIST, detail=kinds[is_out])


class _LookUp(beam.DoFn):
    """Drops the listed pairs; each worker opens the table once."""

    def __init__(self, run: RunFolder, table: str) -> None:
        self._run = dataclasses.replace(run, drop_list=())
        self._table = table
        self._shared = Shared()

    def setup(self) -> None:
        # `Shared` holds a weak reference; this one keeps the list while the DoFn lives.
        self._listed = self._shared.acquire(
            lambda: DropList.open(files.local_copy(self._table))
        )

    def process(self, decisions: UnitDecisions) -> Iterator[UnitDecisions]:
        yield drop_listed(decisions, self._run, self._listed)
