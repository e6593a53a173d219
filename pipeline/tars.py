"""Members of a tar, one after the other, with the byte where each one's data lies.

In: a binary file. Out: names, offsets, sizes, and the data that is asked for. Python's
`tarfile` takes five times longer for a member, ends without a word at a damaged header
and keeps a list of all members. Known: ustar, GNU long names and sizes, pax headers.
Tars that were joined with `cat` are read to the end of the last one.
"""

import dataclasses
import re
import typing
from collections.abc import Callable, Iterator

_BLOCK_BYTES = 512
_MAX_LONG_HEADER_BYTES = 1 << 20
_MAX_MEMBER_BYTES = 1 << 62  # beyond it a position is no file offset

_REGULAR_FILES = (b"0", b"\0", b"7")
_GNU_LONG_NAME = b"L"
_PAX_HEADER = b"x"
_PAX_RECORD = re.compile(rb"\d+ (path|size)=([^\n]*)\n")


class TarError(ValueError):
    """A tar that is damaged or cut off; the message names the byte."""


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """One regular file of a tar."""

    name: str
    offset: int  # of the data, in bytes
    size: int  # bytes
    data: bytes | None  # None if it was not asked for


@dataclasses.dataclass(frozen=True, slots=True)
class _Header:
    name: bytes
    size: int
    kind: bytes
    offset: int  # of the data

    @property
    def end(self) -> int:
        """Where the next header begins."""
        return self.offset + self.size + -self.size % _BLOCK_BYTES


def read_members(
    file: typing.BinaryIO, max_bytes: Callable[[str], int]
) -> Iterator[Member]:
    """Reads the regular files of a tar in their order.

    Args:
      file: a seekable file at the first header.
      max_bytes: maps a name to the most bytes to read of such a member; the data of
        larger ones is passed over.

    Raises:
      TarError: where the tar is damaged, or ends without an end mark.
    """
    while (header := _next_header(file)) is not None:
        if header.kind in _REGULAR_FILES:
            name = header.name.decode(errors="backslashreplace")
            is_wanted = header.size <= max_bytes(name)
            data = _read(file, header.size) if is_wanted else None
            yield Member(name, header.offset, header.size, data)
        file.seek(header.end)


def _next_header(file: typing.BinaryIO) -> _Header | None:
    """The next header with its long name in place; None behind the end mark."""
    is_end = False
    overrides: dict[bytes, bytes] = {}
    while block := file.read(_BLOCK_BYTES):
        is_end = not any(block)
        if is_end:
            continue
        header = _parse_header(block, file.tell())
        if header.kind not in (_GNU_LONG_NAME, _PAX_HEADER):
            return _overridden(header, overrides)
        overrides |= _read_overrides(file, header)
        file.seek(header.end)
    if not is_end:
        raise TarError(f"tar cut off at byte {file.tell()}: expected an end mark")
    return None


def _parse_header(block: bytes, offset: int) -> _Header:
    start = offset - len(block)
    if len(block) < _BLOCK_BYTES:
        raise TarError(f"tar cut off at byte {offset}, inside a header")
    # The checksum is the sum of the header with blanks in the checksum's own place.
    checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if _number(block[148:156], start) != checksum:
        raise TarError(f"tar damaged at byte {start}: wrong checksum of a header")
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0]
    if prefix and block[257:263] == b"ustar\0":  # GNU tars use the place otherwise
        name = prefix + b"/" + name
    return _Header(name, _number(block[124:136], start), block[156:157], offset)


def _number(field: bytes, start: int) -> int:
    """A number in octal digits, or in binary behind a byte 0x80."""
    text = field.partition(b"\0")[0].strip()
    if field[0] == 0x80:
        value = int.from_bytes(field[1:], "big")
    elif text.isdigit() and not text.strip(b"01234567"):
        value = int(text, 8)
    else:
        raise TarError(f"tar damaged at byte {start}: {field!r} in a header")
    return _checked_size(value, start)


def _checked_size(value: int, start: int) -> int:
    if value > _MAX_MEMBER_BYTES:
        raise TarError(f"tar damaged at byte {start}: a member of {value} bytes")
    return value


def _read_overrides(file: typing.BinaryIO, header: _Header) -> dict[bytes, bytes]:
    """What a GNU or pax header says of the member behind it."""
    if header.size > _MAX_LONG_HEADER_BYTES:
        raise TarError(
            f"tar damaged at byte {header.offset}: a header of {header.size} bytes"
        )
    data = _read(file, header.size)
    if header.kind == _GNU_LONG_NAME:
        return {b"path": data.rstrip(b"\0")}
    return dict(_PAX_RECORD.findall(data))


def _overridden(header: _Header, overrides: dict[bytes, bytes]) -> _Header:
    if not overrides:
        return header
    name = overrides.get(b"path", header.name)
    size = overrides.get(b"size", b"%d" % header.size)
    if not size.isdigit():
        raise TarError(f"tar damaged at byte {header.offset}: a size of {size!r}")
    start = header.offset - _BLOCK_BYTES
    return dataclasses.replace(header, name=name, size=_checked_size(int(size), start))


def _read(file: typing.BinaryIO, n_bytes: int) -> bytes:
    data = file.read(n_bytes)
    if len(data) < n_bytes:
        raise TarError(f"tar cut off at byte {file.tell()}, inside a member")
    return data
