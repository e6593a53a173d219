"""Images of chosen rows of a Parquet file, for which no other images are read.

In: a path and rows. Out: the spans of the file that hold their images, and the images,
once the bytes of the spans are there. Where the file has a page index, the spans are
the pages of the rows; otherwise the image columns of their row groups. pyarrow decodes
them from a file that seems whole: what is not read are pages without values.
"""

import bisect
import dataclasses
import io
import itertools
import typing
from collections.abc import Iterable, Iterator, Sequence

import pyarrow.parquet as pq

from pipeline.config.curation import ImageTextSource
from pipeline.sources import page_index, parquet
from pipeline.sources.columns import Columns, DamageError, ShardError
from pipeline.storage import files
from pipeline.storage.chosen_ranges import read_ranges

_TAIL_BYTES = 8 << 10  # more than the footer of a few row groups
_END_BYTES = 8  # the length of the footer, and a magic word
_MAX_INDEX_REQUESTS = 4  # at once; other files are looked at meanwhile
_PIECE_BYTES = 1 << 20  # of a column chunk that is read as a whole


@dataclasses.dataclass(frozen=True)
class _Bytes:
    """Bytes of the file, which are read."""

    start: int
    length: int


_Part = _Bytes | bytes  # of a column chunk; `bytes` stand for pages that are not read


@dataclasses.dataclass(frozen=True)
class ChosenRows:
    """What is to be read for the images of some rows."""

    rows: frozenset[int]
    column: str
    leaf: str  # path of the column's bytes
    metadata: pq.FileMetaData
    n_file_bytes: int
    start_to_parts: dict[int, tuple[_Part, ...]]  # of the chunks of their row groups
    may_repeat: bool  # whether a dictionary may give many rows one value

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Starts and lengths in the file, in order."""
        every = itertools.chain.from_iterable(self.start_to_parts.values())
        return [(one.start, one.length) for one in every if isinstance(one, _Bytes)]

    def decode(self, read: Iterator[bytes | OSError]) -> Iterator[bytes]:
        """The encoded images of the rows, ascending; b"" where there is none.

        Args:
          read: what reading the spans gave, in order.

        Raises:
          DamageError: where the file is damaged.
          OSError: if it could not be read.
        """
        file = _ChosenFile(self, read)
        with parquet.open_parquet(file, self.metadata) as opened:
            batches = parquet.read_batches(
                opened, [self.leaf], self.rows, may_repeat=self.may_repeat
            )
            for first, batch in batches:
                images = parquet.image_bytes_of(batch, self.column)
                for row, image in enumerate(images, first):
                    if row in self.rows:
                        yield image


def find_rows(path: str, source: ImageTextSource, rows: Iterable[int]) -> ChosenRows:
    """Finds where the images of rows lie: by one to three requests to a store.

    Raises:
      ShardError: if the file is damaged, or has no column of images.
      OSError: if it cannot be read.
    """
    footer, n_file_bytes = _read_footer(path)
    chosen = frozenset(rows)
    with parquet.open_parquet(io.BytesIO(footer)) as opened:
        column, leaf = Columns.find_image(opened, source)
        metadata = opened.metadata
    number = _leaf_number(metadata, leaf)
    try:
        chunks = page_index.find_chunks(footer[:-_END_BYTES], number)
    except ValueError as error:
        raise DamageError(f"Parquet file damaged: {error}") from error
    groups = [
        _ChosenGroup(chunks[group], n_rows, chosen_of_group)
        for group, n_rows, chosen_of_group in _chosen_groups(metadata, chosen)
    ]
    for group in groups:
        if not 0 <= group.chunk.start <= group.chunk.stop <= n_file_bytes:
            raise DamageError("Parquet file damaged: a column chunk outside the file")
    leaf_schema = metadata.schema.column(number)
    indices = _read_indices(path, groups, leaf_schema)
    parts, may_repeat = {}, False
    for group, index in zip(groups, indices, strict=True):
        pages = group.find_pages(index)
        found = group.parts(pages, leaf_schema.max_definition_level)
        parts[group.chunk.start] = tuple(found)
        may_repeat |= not pages or pages[0].start > group.chunk.start
    return ChosenRows(chosen, column, leaf, metadata, n_file_bytes, parts, may_repeat)


@dataclasses.dataclass(frozen=True)
class _ChosenGroup:
    """A row group with chosen rows, which count from its first one."""

    chunk: page_index.Chunk
    n_rows: int
    rows: Sequence[int]

    def find_pages(self, index: bytes) -> Sequence[page_index.Page]:
        """The pages of the chunk; none without an index that can be read."""
        try:
            return page_index.parse_pages(index, self.n_rows, self.chunk)
        except ValueError:  # the file can be read without
            return ()

    def parts(
        self, pages: Sequence[page_index.Page], max_definition_level: int
    ) -> Sequence[_Part]:
        """The column chunk; with an index, without the pages that no row needs."""
        chunk = self.chunk
        whole = list(_pieces(chunk.start, chunk.stop))
        if not pages:
            return whole
        parts = list(self._chosen_pages(pages, max_definition_level))
        n_bytes = sum(
            part.length if isinstance(part, _Bytes) else len(part) for part in parts
        )
        # Arrow reads no further than the chunk was long.
        return parts if n_bytes <= chunk.stop - chunk.start else whole

    def _chosen_pages(
        self, pages: Sequence[page_index.Page], max_definition_level: int
    ) -> Iterator[_Part]:
        dictionary = pages[0].start - self.chunk.start
        if dictionary:
            yield _Bytes(self.chunk.start, dictionary)
        chosen = frozenset(self.rows)
        for is_blank, group in itertools.groupby(
            pages, lambda page: chosen.isdisjoint(page.rows)
        ):
            if is_blank:
                n_rows = sum(len(page.rows) for page in group)
                yield page_index.make_blank_page(n_rows, max_definition_level)
            else:
                yield from (_Bytes(page.start, page.n_bytes) for page in group)


def _pieces(start: int, stop: int) -> Iterator[_Bytes]:
    for first in range(start, stop, _PIECE_BYTES):
        yield _Bytes(first, min(_PIECE_BYTES, stop - first))


def _read_footer(path: str) -> tuple[bytes, int]:
    """The metadata with the bytes behind them, and the size of the file."""
    tail, n_file_bytes = files.read_end(path, _TAIL_BYTES)
    length = int.from_bytes(tail[-_END_BYTES:][:4], "little") + _END_BYTES
    if len(tail) < length <= n_file_bytes:
        before = files.read_range(path, n_file_bytes - length, length - len(tail))
        tail = before + tail
    return tail[-length:], n_file_bytes


def _leaf_number(metadata: pq.FileMetaData, leaf: str) -> int:
    schema = metadata.schema
    paths = [schema.column(number).path for number in range(metadata.num_columns)]
    if paths.count(leaf) != 1:
        raise ShardError(f"column {leaf!r}: expected it once")
    return paths.index(leaf)


def _chosen_groups(
    metadata: pq.FileMetaData, chosen: frozenset[int]
) -> Iterator[tuple[int, int, list[int]]]:
    """Row groups with chosen rows: number, rows in it, and the chosen of them."""
    first = 0
    rows = sorted(chosen)
    for group in range(metadata.num_row_groups):
        n_rows = metadata.row_group(group).num_rows
        begin, end = (bisect.bisect_left(rows, n) for n in (first, first + n_rows))
        if begin < end:
            yield group, n_rows, [row - first for row in rows[begin:end]]
        first += n_rows


def _read_indices(
    path: str, groups: Sequence[_ChosenGroup], leaf: typing.Any
) -> list[bytes]:
    """The offset index of each group; b"" if there is none, or it is of no use."""
    if leaf.physical_type != "BYTE_ARRAY" or leaf.max_repetition_level:
        return [b""] * len(groups)  # no page of nulls could stand for others
    chunks = [group.chunk for group in groups]
    places = [(one.index_start, one.index_length) for one in chunks]
    return list(read_ranges(path, places, _MAX_INDEX_REQUESTS))


class _ChosenFile(io.RawIOBase):
    """A file that seems to hold all pages of the chosen row groups.

    Arrow reads each column chunk from its start to its end, one after the other.
    """

    def __init__(self, chosen: ChosenRows, read: Iterator[bytes | OSError]) -> None:
        self._chosen = chosen
        self._read = read
        self._position = 0
        self._parts: Iterator[bytes] = iter(())
        self._next_position = -1  # in the column chunk that is read
        self._left = memoryview(b"")  # of the part that was taken last

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        starts = {
            io.SEEK_SET: 0,
            io.SEEK_CUR: self._position,
            io.SEEK_END: self._chosen.n_file_bytes,
        }
        self._position = starts[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Always `size` bytes: behind the pages of a chunk are zeros."""
        if self._position != self._next_position:
            self._begin_chunk()
        taken, n_bytes = [], 0
        while n_bytes < size:
            if not self._left:
                self._left = memoryview(next(self._parts, bytes(size - n_bytes)))
            taken.append(self._left[: size - n_bytes])
            self._left = self._left[size - n_bytes :]
            n_bytes += len(taken[-1])
        self._position = self._next_position = self._position + size
        return b"".join(taken)

    def _begin_chunk(self) -> None:
        for _ in self._parts:  # not needed by Arrow
            pass
        parts = self._chosen.start_to_parts.get(self._position)
        if parts is None:
            raise OSError(f"read at byte {self._position}: expected a column chunk")
        self._parts, self._left = self._take(parts), memoryview(b"")

    def _take(self, parts: Iterable[_Part]) -> Iterator[bytes]:
        for part in parts:
            if isinstance(part, bytes):
                yield part
                continue
            data = next(self._read)
            if isinstance(data, OSError):
                raise data
            if len(data) < part.length:
                raise OSError(f"file cut off at byte {part.start + len(data)}")
            yield data
