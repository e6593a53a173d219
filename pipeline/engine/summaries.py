"""The summaries of a folder of tables: one small JSON object beside each table.

In: a folder with `<lot>.parquet` and `<lot>.summary.json` for each lot. Out: the name
of a lot to its summary. Ten thousand lots are listed, and one file has the summaries
that are as they were when that file was written; only the others are read.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import files
from pipeline.storage.tables import SUMMARY_SUFFIX

CACHE_NAME = "summaries.cache"  # which no pattern of tables or summaries matches

_MIN_CACHED = 64  # fewer are read as fast as one
_N_FOLDERS_AT_ONCE = 8
_N_NAMED = 3  # damaged ones in a line


class _Kept(NamedTuple):
    """A summary as it lies in the folder."""

    mark: str
    data: bytes | pa.Buffer  # of the file with all of them, which is held but once


class Summaries(Mapping[str, dict[str, Any]]):
    """Lot to the summary of its table, in the order of their names.

    A lot is there if its table and its summary are. A summary is parsed each time it is
    asked for: ten thousand of them parsed would take gigabytes.
    """

    suffix = SUMMARY_SUFFIX
    table_suffix = ".parquet"  # of what a summary is of

    def __init__(
        self, folder: str, name_to_kept: Mapping[str, _Kept], is_cached: bool
    ) -> None:
        self.folder = folder
        self._name_to_kept = name_to_kept
        self._is_cached = is_cached

    @classmethod
    def read(cls, folder: str) -> Self:
        """Reads the summaries of a folder, which need not be there yet.

        Raises:
          ValueError: if some are damaged, with a line that names them.
        """
        cached = _read_cache(folder)
        name_to_mark = cls._list(folder, cached)
        kept = {
            name: found
            for name, mark in name_to_mark.items()
            if (found := cached.get(name)) and found.mark == mark
        }
        is_cached = len(kept) == len(cached) == len(name_to_mark)
        new = {n: mark for n, mark in name_to_mark.items() if n not in kept}
        kept |= cls._read_new(folder, new)
        return cls(folder, dict(sorted(kept.items())), is_cached)

    @classmethod
    def _list(cls, folder: str, known: Iterable[str]) -> dict[str, str]:
        """Lot to the mark of its summary, sorted by name."""
        endings = {cls.suffix, cls.table_suffix}
        paths = [files.join(folder, name + end) for name in known for end in endings]
        found = files.facts_in(folder, known=sorted(paths))
        return {
            name: facts.mark
            for path, facts in sorted(found.items())
            if path.endswith(cls.suffix)
            and (name := path.removesuffix(cls.suffix)) + cls.table_suffix in found
        }

    @classmethod
    def _read_new(
        cls, folder: str, name_to_mark: Mapping[str, str]
    ) -> dict[str, _Kept]:
        paths = [files.join(folder, name + cls.suffix) for name in name_to_mark]
        kept, damaged = {}, []
        found = zip(name_to_mark, paths, files.read_many(paths), strict=True)
        for name, path, data in found:
            if isinstance(data, FileNotFoundError):  # removed since it was listed
                continue
            if isinstance(data, OSError):
                raise data
            if cls.is_whole(data):
                kept[name] = _Kept(name_to_mark[name], data)
            else:
                damaged.append(path)
        if damaged:
            cls.report_damage(folder, damaged)
        return kept

    @classmethod
    def is_whole(cls, data: bytes) -> bool:
        """Whether a file holds a summary."""
        try:
            return isinstance(json.loads(data), dict)
        except (ValueError, RecursionError):
            return False

    @classmethod
    def report_damage(cls, folder: str, paths: Sequence[str]) -> None:
        """Raises ValueError on damaged summaries."""
        raise ValueError(_describe_damage(folder, paths))

    def __getitem__(self, name: str) -> dict[str, Any]:
        return json.loads(bytes(self._name_to_kept[name].data))

    def __iter__(self) -> Iterator[str]:
        return iter(self._name_to_kept)

    def __len__(self) -> int:
        return len(self._name_to_kept)

    def write_cache(self) -> None:
        """Writes the file with all summaries unless it has them, or they are few.

        For commands that may write to the folder. Of two writers the last one wins:
        what it did not know is read again.
        """
        if self._is_cached or len(self) < _MIN_CACHED:
            return
        kept = self._name_to_kept.values()
        data = [bytes(one.data) for one in kept]
        marks = [one.mark for one in kept]
        table = pa.table({"name": list(self), "mark": marks, "summary": data})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", use_dictionary=False)
        files.write(files.join(self.folder, CACHE_NAME), buffer.getvalue())
        self._is_cached = True


def read_folders(folders: Sequence[str]) -> list[Summaries]:
    """The summaries of several folders, which are read at the same time."""
    with futures.ThreadPoolExecutor(_N_FOLDERS_AT_ONCE) as executor:
        return list(executor.map(Summaries.read, folders))


def _read_cache(folder: str) -> dict[str, _Kept]:
    """What the file has; nothing if it is not there or cannot be read."""
    try:
        data = files.read(files.join(folder, CACHE_NAME))
        table = pq.read_table(io.BytesIO(data), columns=["name", "mark", "summary"])
        names, marks, summaries = table.columns
        buffers = (summary.as_buffer() for summary in summaries)
        kept = map(_Kept, marks.to_pylist(), buffers)
        return dict(zip(names.to_pylist(), kept, strict=True))
    except (AttributeError, OSError, ValueError):
        return {}


def _describe_damage(folder: str, paths: Sequence[str]) -> str:
    names = [files.split(path)[1] for path in paths[:_N_NAMED]]
    more = f" and {len(paths) - _N_NAMED} more" if len(paths) > _N_NAMED else ""
    return (
        f"{folder}: expected objects in JSON, but {', '.join(names)}{more} are damaged;"
        " remove them, and run the command again: it makes their tables again"
    )
