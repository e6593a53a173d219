"""Where the pages of a column of a Parquet file lie, and pages in place of others.

In: the bytes of a footer and of an offset index, which are Thrift structs in compact
form. Out: the place and the rows of each page, and pages without values that stand for
pages which are not read. pyarrow does not show an index, and where the metadata of a
column are damaged it ends the process.
"""

import dataclasses
import typing
from collections.abc import Iterator, Sequence

# Fields of the structs of `parquet.thrift`.
_ROW_GROUPS, _COLUMNS, _METADATA, _INDEX_OFFSET, _INDEX_LENGTH = 4, 1, 3, 4, 5
_CHUNK_BYTES, _DATA_OFFSET, _DICTIONARY_OFFSET = 7, 9, 11
_PAGE_LOCATIONS, _OFFSET, _PAGE_BYTES, _FIRST_ROW = 1, 1, 2, 3
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = (
    range(1, 13)
)
_DATA_PAGE_V2, _PLAIN = 3, 0
_LENGTH_BYTES = 4  # before each value of a plain page
_DAMAGED = (IndexError, KeyError, TypeError, ValueError, RecursionError)


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """One data page of a column chunk."""

    start: int  # in the file, of its header
    n_bytes: int  # with its header
    rows: range  # in the row group


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """A column of one row group: the bytes of the file that hold it."""

    start: int
    stop: int
    index_start: int
    index_length: int  # of its offset index; 0 if there is none


class _Compact:
    """A reader of Thrift's compact form."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def read_struct(self) -> dict[int, typing.Any]:
        """The number of each field to its value."""
        fields: dict[int, typing.Any] = {}
        number = 0
        while head := self._take():
            step, kind = head >> 4, head & 0x0F
            number = number + step if step else self._integer()
            fields[number] = (
                kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind)
            )
        return fields

    def _take(self) -> int:
        self._position += 1
        return self._data[self._position - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while (byte := self._take()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value | byte << shift

    def _integer(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)

    def _bytes(self, length: int) -> bytes:
        self._position += length
        return self._data[self._position - length : self._position]

    def _value(self, kind: int) -> typing.Any:
        if kind in (_I16, _I32, _I64):
            return self._integer()
        if kind == _STRUCT:
            return self.read_struct()
        if kind == _BINARY:
            return self._bytes(self._unsigned())
        if kind in (_LIST, _SET):
            head = self._take()
            length = head >> 4 if head >> 4 < 15 else self._unsigned()
            return [self._value(head & 0x0F) for _ in range(length)]
        if kind in (_TRUE, _FALSE, _BYTE):  # an item of a list
            return self._take()
        if kind == _DOUBLE:
            return self._bytes(8)
        raise ValueError(f"Thrift type {kind}: expected one that Parquet has")


def find_chunks(footer: bytes, column: int) -> list[Chunk]:
    """The chunks of a column, one for each row group.

    Args:
      footer: the metadata of a file, which Arrow has read before.
      column: number of a leaf.

    Raises:
      ValueError: if the metadata of a chunk are damaged.
    """
    try:
        groups = _Compact(footer).read_struct()[_ROW_GROUPS]
        return [_make_chunk(group[_COLUMNS][column]) for group in groups]
    except _DAMAGED as error:
        raise ValueError("wrong metadata of a column chunk") from error


def _make_chunk(fields: dict[int, typing.Any]) -> Chunk:
    metadata = fields[_METADATA]
    start = metadata[_DATA_OFFSET]
    if 0 < metadata.get(_DICTIONARY_OFFSET, 0) < start:
        start = metadata[_DICTIONARY_OFFSET]
    index = fields.get(_INDEX_OFFSET, 0), fields.get(_INDEX_LENGTH, 0)
    return Chunk(start, start + metadata[_CHUNK_BYTES], *index)


def parse_pages(index: bytes, n_rows: int, chunk: Chunk) -> list[Page]:
    """The data pages of a column chunk.

    Args:
      index: the offset index of the chunk.
      n_rows: of its row group.

    Raises:
      ValueError: if the index is damaged.
    """
    try:
        found = _Compact(index).read_struct()[_PAGE_LOCATIONS]
        places = [(one[_OFFSET], one[_PAGE_BYTES], one[_FIRST_ROW]) for one in found]
    except _DAMAGED as error:
        raise ValueError("offset index: expected places of pages") from error
    ends = [*(first for _, _, first in places[1:]), n_rows]
    pages = [
        Page(offset, n_bytes, range(first, end))
        for (offset, n_bytes, first), end in zip(places, ends, strict=True)
    ]
    end, n_rows_before = chunk.start, 0
    for page in pages:
        follows = page.start >= end and page.n_bytes > 0 and len(page.rows) > 0
        if not follows or page.rows.start != n_rows_before:
            raise ValueError("offset index: expected pages that follow each other")
        end, n_rows_before = page.start + page.n_bytes, page.rows.stop
    if end > chunk.stop or n_rows_before != n_rows:
        raise ValueError("offset index: expected the pages of a column chunk")
    return pages


def make_blank_page(n_rows: int, max_definition_level: int) -> bytes:
    """A data page of rows without a value: nulls, or empty ones where none may be null.

    Args:
      max_definition_level: of a column of bytes that is in no list.
    """
    if max_definition_level:
        n_level_bytes = (max_definition_level.bit_length() + 7) // 8
        levels = _varint(n_rows << 1) + bytes(n_level_bytes)  # one run of zeros
        values = b""
    else:
        levels, values = b"", bytes(_LENGTH_BYTES * n_rows)
    n_bytes = len(levels) + len(values)
    n_nulls = n_rows if max_definition_level else 0
    numbers = (n_rows, n_nulls, n_rows, _PLAIN, len(levels), 0)
    is_compressed = bytes([1 << 4 | _FALSE])
    header = b"".join(_fields((_DATA_PAGE_V2, n_bytes, n_bytes)))
    header += bytes([5 << 4 | _STRUCT])  # the eighth field after the third
    header += b"".join(_fields(numbers)) + is_compressed + b"\0\0"
    return header + levels + values


def _fields(numbers: Sequence[int]) -> Iterator[bytes]:
    """Fields of 32 bits that follow each other."""
    for number in numbers:
        yield bytes([1 << 4 | _I32]) + _varint(number << 1)


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)
