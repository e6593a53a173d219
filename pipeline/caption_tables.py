"""The captions of one granularity, which grow: reading, adding, listing.

A unit has any number of tables `<unit>.<digest of its image hashes>.parquet`, none of
which is ever changed. A selection that grows adds a table with the new images.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

from pipeline import files
from pipeline.records import SyntheticCaption

FAILED = "error"  # the finish reason of a row that holds an error instead of a caption


@dataclasses.dataclass(frozen=True)
class CaptionTables:
    """Tables of `SyntheticCaption`, one folder a granularity, listed once."""

    tables: files.UnitTables
    unit_to_names: Mapping[str, Sequence[str]]

    @classmethod
    def open(cls, folder: str) -> Self:
        """Lists a folder, which need not be there yet."""
        tables = files.UnitTables(folder)
        unit_to_names = collections.defaultdict(list)
        for name in sorted(tables.unit_names()):
            unit_to_names[name.rpartition(".")[0]].append(name)
        return cls(tables, dict(unit_to_names))

    def names(self, unit_name: str) -> tuple[str, ...]:
        """Names of a unit's tables, sorted; they tell what is in them."""
        return tuple(self.unit_to_names.get(unit_name, ()))

    def image_hashes(self, unit_name: str) -> frozenset[bytes]:
        """Images of a unit that have a row, be it a caption or an error."""
        return frozenset(
            image_hash
            for name in self.names(unit_name)
            for image_hash in self.tables.read(name, ["image_hash"])[0].to_pylist()
        )

    def texts(self, unit_name: str) -> dict[bytes, tuple[str, ...]]:
        """Image hash to its captions by sample index; without those that failed."""
        index_to_text: dict[bytes, dict[int, str]] = collections.defaultdict(dict)
        for row in self._rows(unit_name):
            if row.finish_reason != FAILED:
                index_to_text[row.image_hash][row.sample_index] = row.text
        return {
            image_hash: tuple(texts[index] for index in sorted(texts))
            for image_hash, texts in index_to_text.items()
        }

    def add(self, unit_name: str, rows: Sequence[SyntheticCaption]) -> None:
        """Writes a table of images that have none yet."""
        digest = hashlib.blake2b(digest_size=6)
        for row in rows:
            digest.update(row.image_hash)
        table = files.to_table(rows, SyntheticCaption)
        self.tables.write(f"{unit_name}.{digest.hexdigest()}", table)

    def _rows(self, unit_name: str) -> Iterator[SyntheticCaption]:
        for name in self.names(unit_name):
            yield from files.from_table(self.tables.read(name), SyntheticCaption)
