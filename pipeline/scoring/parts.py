"""Parts of shards: what `score` has measured so far, until lots are sealed.

A shard's rows are written as one part or several, each a file that is complete or
absent, so that a worker that dies loses what it measured since its last part. A part
has a column for each measure, a struct of the columns of that measure's table. Parts
belong to a shard and not to a lot; their folder is removed once a lot has their rows.
"""

import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.duplicates import Descriptor
from pipeline.config.fingerprint import fingerprint
from pipeline.scoring import environment
from pipeline.scoring.missing_tables import Measure, Tables
from pipeline.sources.shards import Shard
from pipeline.storage import files
from pipeline.storage.tables import open_table

FOLDER = "parts"

_MORE, _END = "more", "end"


def name_of(measure: Measure) -> str:
    """The column of a measure in a part."""
    return measure.name if isinstance(measure, Descriptor) else measure


@dataclasses.dataclass(frozen=True, order=True)
class Part:
    """Rows `start` to `stop` of a shard; what its file name says of it."""

    start: int
    stop: int
    n_unreadable: int
    is_last: bool

    @property
    def file_name(self) -> str:
        end = _END if self.is_last else _MORE
        return f"{self.start:010d}-{self.stop:010d}-{self.n_unreadable}-{end}.parquet"

    @classmethod
    def parse(cls, file_name: str) -> Self:
        start, stop, n_unreadable, end = file_name.removesuffix(".parquet").split("-")
        return cls(int(start), int(stop), int(n_unreadable), end == _END)


@dataclasses.dataclass(frozen=True)
class ShardParts:
    """The parts of one shard, for the tables that a source is to have."""

    parent: str  # of the folders of all shards
    base: str  # of the lot
    shard: Shard

    @classmethod
    def of(cls, root: str, tables: Tables, lot_name: str, shard: Shard) -> Self:
        """The parts for these tables, whichever of them are missing still."""
        return cls(parent_of(root, tables), lot_name.rpartition("-")[0], shard)

    @property
    def folder(self) -> str:
        return files.join(self.parent, self._name)

    @property
    def _name(self) -> str:
        return f"{self.base}.{self.shard.digest}"

    def find(self, measures: Sequence[Measure]) -> list[Part]:
        """The parts with these measures, in order and without a gap."""
        paths = files.list_folder(self.folder, suffix=".parquet")
        parts = (Part.parse(files.split(path)[1]) for path in paths)
        return join([part for part in parts if self._has(part, measures)])

    def _has(self, part: Part, measures: Sequence[Measure]) -> bool:
        with open_table(self._path(part)) as file:
            return set(map(name_of, measures)) <= set(pq.read_schema(file).names)

    def write(
        self,
        part: Part,
        measure_to_table: Mapping[Measure, pa.Table],
        environments: Iterable[str],
    ) -> None:
        """Writes the rows of a part, in a file of their own."""
        columns = {
            name_of(measure): table.to_struct_array().combine_chunks()
            for measure, table in measure_to_table.items()
        }
        buffer = io.BytesIO()
        table = pa.table(columns, metadata=environment.to_metadata(environments))
        pq.write_table(table, buffer, compression="zstd")
        files.write(self._path(part), buffer.getvalue())

    def read(self, part: Part, measure: Measure) -> pa.Table:
        """The rows of one measure of a part, as its table has them."""
        name = name_of(measure)
        with open_table(self._path(part)) as file:
            rows = pq.read_table(file, columns=[name])[name]
        return pa.Table.from_struct_array(rows)

    def environments(self, part: Part) -> list[str]:
        """The environments that a part was measured in."""
        with open_table(self._path(part)) as file:
            return environment.of_schema(pq.read_schema(file))

    def delete(self) -> None:
        """Removes all parts of the shard."""
        files.delete_folder(self.parent, self._name)

    def _path(self, part: Part) -> str:
        return files.join(self.folder, part.file_name)


def join(parts: Sequence[Part]) -> list[Part]:
    """Parts that follow one another from the first row on, the longest such row.

    Two workers at one shard may have cut it at different rows.
    """
    start_to_best: dict[int, list[Part]] = {}
    for part in sorted(parts, key=lambda part: (-part.start, part.stop)):
        rest = [] if part.is_last else start_to_best.get(part.stop, [])
        best = start_to_best.get(part.start, [])
        start_to_best[part.start] = max([part, *rest], best, key=_reach)
    return start_to_best.get(0, [])


def _reach(parts: Sequence[Part]) -> tuple[bool, int]:
    return (parts[-1].is_last, parts[-1].stop) if parts else (False, -1)


def parent_of(root: str, tables: Tables) -> str:
    """The folder of all parts for some tables."""
    folders = sorted(one.folder.removeprefix(root) for one in tables.values())
    return files.join(root, FOLDER, fingerprint("parts", folders))


def finished_shards(root: str, tables: Tables) -> set[str]:
    """The digests of shards whose last part is there."""
    names = (name.rpartition("/") for name in files.list_below(parent_of(root, tables)))
    parquet = ((folder, name) for folder, _, name in names if name.endswith(".parquet"))
    return {
        folder.rpartition(".")[2]
        for folder, name in parquet
        if Part.parse(name).is_last
    }


def delete_parts(root: str, tables: Tables) -> None:
    """Removes all parts for some tables: those of lots that are sealed."""
    folder = parent_of(root, tables)
    if files.list_below(folder):
        files.delete_folder(*files.split(folder))
