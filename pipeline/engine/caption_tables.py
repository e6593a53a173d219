"""The growing captions of one granularity: reading, adding, listing.

A lot has any number of tables `<name>.<digest of what they caption>.parquet`, none of
which is ever changed. A selection that grows adds a table with the new images.

Captions that a model wrote depend only on image and prompt, so their tables have the
base name of the lot, which its successors share, and are paid for once. Imported
captions also depend on what a shard calls its images, so theirs are named like the
tables of its scores.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import pyarrow as pa

from pipeline.config import prompts
from pipeline.config.captions import Granularity
from pipeline.records import FinishReason, Pair, SyntheticCaption
from pipeline.sources.shards import Lot
from pipeline.storage.tables import LotTables, from_table, schema_of, to_table
from recipes.validation import one_line

STAGE = "caption"  # namespace of the counters of all that fills the tables
FAILED, ERRORS = "failed", "errors"  # in summaries: rows, and texts of them to numbers

_MAX_ERROR_CHARS = 200
_MAX_ERRORS = 3  # the most frequent ones

Key = tuple[bytes, bytes]  # image hash, prompt hash


@dataclasses.dataclass(frozen=True)
class CaptionTables:
    """Tables of `SyntheticCaption`, one folder per granularity, listed once."""

    tables: LotTables
    name_to_tables: Mapping[str, Sequence[str]]

    @classmethod
    def at(cls, folder: str) -> Self:
        """The tables of a folder, to add to them; lists nothing."""
        return cls(LotTables(folder), {})

    @classmethod
    def open(cls, folder: str, base: str = "", known: Iterable[str] = ()) -> Self:
        """Lists a folder, which need not be there yet.

        Args:
          base: of the one lot that is asked for, if it is one.
          known: lots that are likely there, which makes this faster.
        """
        tables = LotTables(folder)
        name_to_tables = collections.defaultdict(list)
        for table_name in sorted(tables.lot_names(base, known)):
            name_to_tables[table_name.rpartition(".")[0]].append(table_name)
        return cls(tables, dict(name_to_tables))

    def names(self, lot: Lot) -> tuple[str, ...]:
        """Names of a lot's tables, sorted; they identify what is in them."""
        by_name = self.name_to_tables
        return (*by_name.get(lot.base, ()), *by_name.get(lot.name, ()))

    def of_samples(self, name_to_lot: Mapping[str, Lot]) -> Self:
        """The tables of lots, by the names of samples of these lots."""
        name_to_tables = {name: self.names(lot) for name, lot in name_to_lot.items()}
        return dataclasses.replace(self, name_to_tables=name_to_tables)

    def keys(self, lot: Lot) -> frozenset[Key]:
        """Image and prompt hashes of all rows of a lot, captions and errors."""
        columns = ["image_hash", "prompt_hash"]
        tables = (self.tables.read(name, columns) for name in self.names(lot))
        return frozenset(
            key
            for table in tables
            for key in zip(*(table[name].to_pylist() for name in columns), strict=True)
        )

    def texts(self, lot: Lot) -> dict[Key, tuple[str, ...]]:
        """Captions by sample index; without those that failed."""
        return texts_of(self.rows(lot))

    def read(self, lot: Lot) -> pa.Table:
        """All rows of a lot as one table."""
        tables = [self.tables.read(name) for name in self.names(lot)]
        return pa.concat_tables([schema_of(SyntheticCaption).empty_table(), *tables])

    def rows(self, lot: Lot) -> Iterator[SyntheticCaption]:
        """All rows of a lot, table by table."""
        for name in self.names(lot):
            yield from self.rows_of(name)

    def rows_of(self, name: str) -> list[SyntheticCaption]:
        """All rows of one table."""
        return from_table(self.tables.read(name), SyntheticCaption)

    def add(self, name: str, rows: Sequence[SyntheticCaption]) -> None:
        """Writes a table of what has no row yet; `name` is a lot's, or its base."""
        table = to_table(rows, SyntheticCaption)
        self.tables.write(name_of(name, rows), table, facts_of(rows))


def name_of(name: str, rows: Iterable[SyntheticCaption]) -> str:
    """The name of a table, from a lot's or its base and what the table captions."""
    digest = hashlib.blake2b(digest_size=6)
    for row in rows:
        digest.update(row.image_hash + row.prompt_hash)
    return f"{name}.{digest.hexdigest()}"


def facts_of(rows: Sequence[SyntheticCaption]) -> dict[str, Any]:
    """What a summary says beside the number of rows: failed ones, and why."""
    errors = [row.text for row in rows if row.finish_reason == FinishReason.ERROR]
    counts = collections.Counter(one_line(e, _MAX_ERROR_CHARS) for e in errors)
    return {FAILED: len(errors), ERRORS: dict(counts.most_common(_MAX_ERRORS))}


def texts_of(rows: Iterable[SyntheticCaption]) -> dict[Key, tuple[str, ...]]:
    """Captions by sample index; without those that failed."""
    index_to_text: dict[Key, dict[int, str]] = collections.defaultdict(dict)
    for row in rows:
        if row.finish_reason != FinishReason.ERROR:
            key = (row.image_hash, row.prompt_hash)
            index_to_text[key][row.sample_index] = row.text
    return {
        key: tuple(texts[index] for index in sorted(texts))
        for key, texts in index_to_text.items()
    }


def prompt_of(
    granularity: Granularity, pair: Pair, captions: Mapping[str, Sequence[str]]
) -> str | None:
    """The prompt for a pair; None while a caption that it needs is missing."""
    names = prompts.upstream(granularity.prompt)
    if not all(captions.get(name) for name in names):
        return None
    firsts = {name: captions[name][0] for name in names}
    return prompts.filled(granularity.prompt, pair.alt_text, firsts)


def captions_of(
    pairs: Sequence[Pair],
    granularities: Sequence[Granularity],
    name_to_texts: Mapping[str, Mapping[Key, tuple[str, ...]]],
) -> list[dict[str, tuple[str, ...]]]:
    """Granularity to captions of each pair, with those that are there.

    `name_to_texts` are `CaptionTables.texts` of the pairs' lot.
    """
    in_order = [g for level in prompts.levels(granularities) for g in level]
    found: list[dict[str, tuple[str, ...]]] = []
    for pair in pairs:
        captions: dict[str, tuple[str, ...]] = {}
        for granularity in in_order:
            prompt = prompt_of(granularity, pair, captions)
            if prompt is not None:
                key = (pair.image_hash, prompts.prompt_hash(prompt))
                if texts := name_to_texts[granularity.name].get(key):
                    captions[granularity.name] = texts
        found.append(captions)
    return found
