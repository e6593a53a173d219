"""The tables of one lot, written again for its successor without what is removed.

In: the tables of a lot in all folders of a run. Out: those of its successor, with the
same rows but those of removed pairs and shards. A table whose rows cannot be told apart
is left out, and made again when it is asked for; so are flags, which depend on all
captions of the run.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.engine import caption_tables, error_tables, id_index
from pipeline.engine.error_tables import Failure
from pipeline.engine.removals import RemovedNames, Succession
from pipeline.records import SyntheticCaption
from pipeline.scoring import environment
from pipeline.scoring.shard_work import PLACES_KEY
from pipeline.selection.lot_decisions import OUTCOMES, outcome_counts
from pipeline.selection.search import similarity_cache
from pipeline.storage import files
from pipeline.storage.tables import (
    SUMMARY_SUFFIX,
    LotTables,
    from_table,
    open_table,
    to_table,
)

# Columns that tell which pairs of a table of pairs are removed.
NAMING = ("url", "image_hash", "sample_id")

# Of a summary, whatever rows are removed.
_FACTS = ("source", "pool", environment.KEY)
_CAPTION_MEASURES = ("caption_language-", "caption_alignment-")

Rows = np.ndarray  # bool [n]: which rows of a table stay


@dataclasses.dataclass(frozen=True)
class Folders:
    """The folders of tables in a run folder, whatever settings they are of."""

    pairs: tuple[LotTables, ...]
    aligned: tuple[LotTables, ...]  # one row per pair
    similarities: tuple[LotTables, ...]
    flags: tuple[LotTables, ...]
    errors: tuple[LotTables, ...]
    captions: tuple[LotTables, ...]
    caption_measures: tuple[LotTables, ...]

    @classmethod
    def of(cls, root: str) -> Self:
        """Lists them."""
        scores = _tables(root, "scores")
        measures = _named(scores, *_CAPTION_MEASURES)
        pairs, similarities = _named(scores, "pairs-"), _named(scores, "similarity-")
        others = {*measures, *pairs, *similarities}
        return cls(
            pairs=pairs,
            aligned=(
                *(one for one in scores if one not in others),
                *_tables(root, "decisions"),
            ),
            similarities=similarities,
            flags=_tables(root, "flags"),
            errors=_tables(root, "errors"),
            captions=_tables(root, "captions"),
            caption_measures=measures,
        )

    @property
    def all(self) -> tuple[LotTables, ...]:
        """Every folder."""
        fields = dataclasses.fields(self)
        return tuple(one for f in fields for one in getattr(self, f.name))


def _tables(root: str, kind: str) -> tuple[LotTables, ...]:
    parent = files.join(root, kind)
    names = sorted(files.folders(parent))
    return tuple(LotTables(files.join(parent, name)) for name in names)


def _named(tables: Sequence[LotTables], *prefixes: str) -> tuple[LotTables, ...]:
    return tuple(t for t in tables if files.split(t.folder)[1].startswith(prefixes))


@dataclasses.dataclass(frozen=True)
class Images:
    """Hashes of the images of a lot that were removed, and of those that stay."""

    gone: frozenset[bytes] = frozenset()
    left: frozenset[bytes] = frozenset()

    def __or__(self, other: "Images") -> "Images":
        return Images(self.gone | other.gone, self.left | other.left)

    def rows_left(self, hashes: pa.ChunkedArray) -> Rows:
        """Which rows are not of images that only removed pairs had."""
        removed = pa.array(list(self.gone - self.left), pa.binary())
        return ~pc.is_in(hashes, value_set=removed).to_numpy()


def rewrite(folders: Folders, removed: RemovedNames, lot: Succession) -> Images:
    """Writes the tables of the successor of a lot that are not there yet.

    Not its captions; returns the images that they are kept or removed for.
    """
    images, samples, masks, n_unreadable = Images(), Images(), [], 0
    for tables in folders.pairs:
        if not tables.has(lot.old):
            continue
        pairs = tables.read(lot.old, [*NAMING, "error", "shard"])
        is_left = ~removed.matches(pairs)
        is_left &= ~np.isin(pairs["shard"].to_numpy(), lot.dropped)
        masks.append(is_left)
        images |= _split(pairs["image_hash"], is_left)
        samples |= _split(pairs["sample_id"], is_left)
        errors = pairs["error"].filter(pa.array(is_left)).to_pylist()
        n_unreadable = sum(map(bool, errors))
        if lot.new:
            facts = _facts(tables, lot.old, n_unreadable)
            change = _without_shards(lot.dropped)
            _rewrite_table(tables, lot, is_left, facts, change, with_index=True)
    if lot.new and masks and all(np.array_equal(masks[0], one) for one in masks[1:]):
        for tables in folders.aligned:
            if tables.has(lot.old) and not tables.has(lot.new):
                facts = _facts(tables, lot.old, n_unreadable)
                _rewrite_table(tables, lot, masks[0], facts)
        _rewrite_others(folders, lot, masks[0], samples)
    return images


def _rewrite_others(
    folders: Folders, lot: Succession, is_left: Rows, samples: Images
) -> None:
    for tables in folders.similarities:
        similarity, image = similarity_cache.read(tables, lot.old, len(is_left))
        _, there = similarity_cache.read(tables, lot.new, int(is_left.sum()))
        is_unknown = there == similarity_cache.UNKNOWN
        is_known = (image != similarity_cache.UNKNOWN)[is_left]
        known = np.flatnonzero(is_known & is_unknown)
        if len(known):
            values = (similarity[is_left][known], image[is_left][known])
            similarity_cache.add(tables, lot.new, known, *values)
    for tables in folders.errors:
        if tables.has(lot.old) and not tables.has(lot.new):
            table = tables.read(lot.old)
            rows = samples.rows_left(table["sample_id"])
            found = from_table(table.filter(pa.array(rows)), Failure)
            failures = [dataclasses.replace(one, lot=lot.new) for one in found]
            if failures:
                reasons = {error_tables.REASONS: error_tables.count_reasons(failures)}
                tables.write(lot.new, to_table(failures, Failure), reasons)


def _split(hashes: pa.ChunkedArray, is_left: Rows) -> Images:
    gone, left = hashes.filter(pa.array(~is_left)), hashes.filter(pa.array(is_left))
    return Images(frozenset(gone.to_pylist()), frozenset(left.to_pylist()))


def _facts(tables: LotTables, name: str, n_unreadable: int) -> dict[str, Any]:
    summary = tables.read_summary(name)
    facts = {key: summary[key] for key in _FACTS if key in summary}
    return facts | ({"unreadable": n_unreadable} if "unreadable" in summary else {})


def _rewrite_table(
    tables: LotTables,
    lot: Succession,
    is_left: Rows,
    facts: Mapping[str, Any],
    change: Callable[[pa.Table], pa.Table] = lambda rows: rows,
    *,
    with_index: bool = False,
) -> None:
    """Writes the rows that stay, a group of them at a time."""
    if tables.has(lot.new):
        return
    with open_table(tables.path(lot.old)) as file:
        opened = pq.ParquetFile(file, pre_buffer=True)
        if opened.metadata.num_rows != len(is_left):
            return
        schema = change(opened.schema_arrow.empty_table()).schema
        if "outcome" in schema.names:
            outcomes = opened.read(["outcome"]).filter(pa.array(is_left))
            counts = outcome_counts(outcomes).tolist()
            facts = {
                **facts,
                "outcomes": dict(zip(map(str, OUTCOMES), counts, strict=True)),
            }
        parts: Iterator[pa.Table] = map(change, _parts(opened, is_left))
        if with_index and is_left.any():
            n_buckets = id_index.count_buckets(int(is_left.sum()))
            facts = {**facts, id_index.N_BUCKETS: n_buckets}
            parts = id_index.write_beside(parts, tables, lot.new, n_buckets)
        tables.write_parts(lot.new, schema, parts, facts)


def _parts(opened: pq.ParquetFile, is_left: Rows) -> Iterator[pa.Table]:
    start = 0
    for group in range(opened.num_row_groups):
        rows = opened.read_row_group(group)
        stays = is_left[start : start + rows.num_rows]
        yield rows.filter(pa.array(stays))
        start += rows.num_rows


def _without_shards(dropped: Sequence[int]) -> Callable[[pa.Table], pa.Table]:
    """A change of a table of pairs: the numbers of the shards that are left."""

    def change(pairs: pa.Table) -> pa.Table:
        metadata = dict(pairs.schema.metadata or {})
        if not dropped:
            return pairs
        if PLACES_KEY in metadata:
            places = json.loads(metadata[PLACES_KEY])
            left = [p for number, p in enumerate(places) if number not in dropped]
            metadata[PLACES_KEY] = json.dumps(left).encode()
        numbers = pairs["shard"].to_numpy()
        numbers = numbers - np.searchsorted(np.array(sorted(dropped)), numbers)
        column = pa.array(numbers.astype(np.int64))
        place = pairs.schema.get_field_index("shard")
        return pairs.set_column(place, "shard", column).replace_schema_metadata(
            metadata
        )

    return change


def rewrite_captions(folders: Folders, old: str, new: str, images: Images) -> None:
    """Writes tables of captions without those of images that are gone.

    Args:
      old: the lot that the tables are named by, or its base, which stays.
      new: its successor, or that base; "" if there is none.
    """
    for tables in folders.captions:
        for name in _names(tables, old):
            target = new and f"{new}{name.removeprefix(old)}"
            rows = images.rows_left(tables.read(name, ["image_hash"])["image_hash"])
            for one in (*folders.caption_measures, tables):  # captions last
                _rewrite_captions(one, name, target, rows)


def _rewrite_captions(tables: LotTables, name: str, target: str, rows: Rows) -> None:
    if not tables.has(name):
        return
    table = tables.read(name)
    # Maybe by an attempt that was killed before it wrote the summary.
    is_rewritten = target == name and table.num_rows == rows.sum()
    if is_rewritten and tables.read_summary(name)["rows"] == table.num_rows:
        return
    if target == name and not rows.any():
        # The table first: one without a summary would be there unseen.
        files.delete(tables.folder, [f"{name}.parquet", f"{name}{SUMMARY_SUFFIX}"])
    elif target and rows.any() and (is_rewritten or table.num_rows == len(rows)):
        kept = table if is_rewritten else table.filter(pa.array(rows))
        is_text = "finish_reason" in kept.schema.names  # not of a measure
        found = from_table(kept, SyntheticCaption) if is_text else []
        facts = caption_tables.facts_of(found) if is_text else None
        tables.write(target, kept, facts)


def _names(tables: LotTables, stem: str) -> list[str]:
    paths = files.list_folder(tables.folder, prefix=f"{stem}.", suffix=".parquet")
    names = (files.split(path)[1].removesuffix(".parquet") for path in paths)
    return sorted(name for name in names if name.rpartition(".")[0] == stem)
