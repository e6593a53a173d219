"""Pairs that must not be used: owners' opt-outs and the entries of a drop list.

The transform maps PCollection[LotDecisions] to PCollection[LotDecisions]. It comes
before all other steps of `select`, and also drops pairs of sources with `keep_all`.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.utils.shared import Shared

from pipeline.engine.counters import add_to_counter
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection.lot_decisions import LotDecisions, read_rows
from pipeline.selection.lot_join import join_by_lot
from pipeline.sources import drop_lists, drop_tables
from pipeline.sources.drop_lists import DropList, Names
from pipeline.sources.robots import opt_out
from pipeline.storage import files

MAX_MAPPED_ENTRIES = 2**26  # 1 GiB, which each machine copies from a store


class DropForbidden(beam.PTransform):
    """Drops pairs whose owner opted out, and pairs that the drop list names."""

    def __init__(self, run: RunFolder, directives: tuple[str, ...]) -> None:
        super().__init__()
        self._run = run
        self._directives = directives

    def expand(self, decisions: beam.PCollection[LotDecisions]) -> beam.PCollection:
        if self._directives:
            decisions = decisions | "Honor opt-outs" >> beam.Map(
                drop_opt_outs, self._run, self._directives
            )
        if self._run.drop_list:
            table = drop_lists.build(self._run.drop_list, self._run.root)
            decisions = decisions | "Look up drop list" >> LookUp(self._run, table)
        return decisions


def drop_opt_outs(
    decisions: LotDecisions, run: RunFolder, directives: Sequence[str]
) -> LotDecisions:
    """Drops pairs that have one of the directives; the detail names it."""
    rows = decisions.kept_rows
    table = read_rows(run.pairs(decisions.lot.source), decisions, rows, "robots")
    robots = table["robots"].combine_chunks().dictionary_encode()
    found = [opt_out(text, directives) for text in robots.dictionary.to_pylist()]
    details = np.array(found, dtype=object).take(robots.indices)
    is_out = details != ""
    return decisions.drop(rows[is_out], DropReason.OPT_OUT, detail=details[is_out])


class LookUp(beam.PTransform):
    """Drops the pairs that a table of entries names; the detail is the kind of entry.

    Workers map a table of up to `max_mapped` entries into memory. Of a larger one each
    reads the parts whose digests it gets: names of pairs cross a shuffle to their part,
    and what is listed goes back. Both decide alike.
    """

    def __init__(
        self, run: RunFolder, table: str, max_mapped: int = MAX_MAPPED_ENTRIES
    ) -> None:
        super().__init__()
        self._run = dataclasses.replace(run, drop_list=())
        self._table = table
        self._max_mapped = max_mapped

    def expand(self, decisions: beam.PCollection[LotDecisions]) -> beam.PCollection:
        n_entries = drop_tables.count_entries(self._table)
        if n_entries <= self._max_mapped:
            return decisions | "Search list" >> beam.ParDo(
                SearchMapped(self._run, self._table)
            )
        n_parts = drop_tables.count_parts(n_entries)
        listed = (
            decisions
            | "Spread names" >> beam.FlatMap(spread_names, self._run, n_parts)
            | "Bring names to their part" >> beam.GroupByKey()
            | "Search parts" >> beam.FlatMap(search_part, self._table, n_parts)
        )
        joined = join_by_lot(decisions, listed, "listed names")
        return joined | "Drop listed pairs" >> beam.MapTuple(drop_listed)


class SearchMapped(beam.DoFn):
    """Drops the listed pairs; each worker opens the table once."""

    def __init__(self, run: RunFolder, table: str) -> None:
        self._run = run
        self._table = table
        self._shared = Shared()

    def setup(self) -> None:
        # `Shared` holds a weak reference; this one keeps the list while the DoFn lives.
        self._listed = self._shared.acquire(
            lambda: DropList.open(files.local_copy(self._table))
        )

    def process(self, decisions: LotDecisions) -> Iterator[LotDecisions]:
        rows, pairs = read_named(decisions, self._run)
        yield _drop(decisions, rows, self._listed.kinds_of(pairs))


def read_named(decisions: LotDecisions, run: RunFolder) -> tuple[np.ndarray, pa.Table]:
    """The kept rows of a lot, and what may name their pairs.

    Counts pairs `without_url`, which no address of the list can match.
    """
    rows = decisions.kept_rows
    columns = ("url", "image_hash", "sample_id")
    pairs = read_rows(run.pairs(decisions.lot.source), decisions, rows, *columns)
    without_url = int(pc.sum(pc.equal(pairs["url"], "")).as_py() or 0)
    add_to_counter("select", "without_url", without_url)
    return rows, pairs


def spread_names(
    decisions: LotDecisions, run: RunFolder, n_parts: int
) -> Iterator[tuple[int, tuple[str, Names]]]:
    """Yields (part of the table, (lot name, names of its pairs))."""
    rows, pairs = read_named(decisions, run)
    names = Names.of(pairs)
    names = dataclasses.replace(names, row=rows[names.row])
    part = drop_tables.parts_of(names.digest, n_parts)
    order = np.argsort(part, kind="stable")
    parts, starts = np.unique(part[order], return_index=True)
    for key, mine in zip(parts.tolist(), np.split(order, starts[1:]), strict=False):
        yield key, (decisions.lot.name, names.take(mine))


def search_part(
    part_to_names: tuple[int, Iterable[tuple[str, Names]]], table: str, n_parts: int
) -> Iterator[tuple[str, Names]]:
    """Yields (lot name, names that are listed), reading one part of the table."""
    part, blocks = part_to_names
    entries = drop_tables.read_part(table, part, n_parts)
    for lot_name, names in blocks:
        is_listed = drop_tables.is_in(names.digest, entries)
        if is_listed.any():
            yield lot_name, names.take(is_listed)


def drop_listed(decisions: LotDecisions, found: Iterable[Names]) -> LotDecisions:
    """Drops the pairs of one lot that have a listed name."""
    rows = np.arange(len(decisions.outcome))
    found = [Names(rows[:0], np.empty(0, np.int8), rows[:0]), *found]
    row = np.concatenate([names.row for names in found])
    kind = np.concatenate([names.kind for names in found])
    listed = Names(row, kind, row)
    return _drop(decisions, rows, drop_lists.first_kinds(listed, len(rows)))


def _drop(decisions: LotDecisions, rows: np.ndarray, kinds: np.ndarray) -> LotDecisions:
    is_out = kinds != ""
    return decisions.drop(rows[is_out], DropReason.DROP_LIST, detail=kinds[is_out])
