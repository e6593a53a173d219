"""Members of a tar, one after the other, with the byte where each one's data lies.

In: a binary file. Out: names, offsets, sizes, and the data that is asked for. Python's
`tarfile` takes five times longer for a member, ends without a word at a damaged header
and keeps a list of all members. Known: ustar, GNU long names and sizes, pax headers,
links to members. Tars that were joined with `cat` are read to the end of the last one.
"""

import dataclasses
import posixpath
import typing
from collections.abc import Callable, Iterator

_BLOCK_BYTES = 512
_MAX_LONG_HEADER_BYTES = 1 << 20
_MAX_MEMBER_BYTES = 1 << 62  # beyond it a position is no file offset
_MAX_LINK_TARGETS = 1 << 18  # members that links are looked up among
_MAX_LINKS_IN_A_ROW = 8
_MAX_SHOWN_CHARS = 80

_REGULAR_FILES = (b"0", b"\0", b"7")
_HARD_LINK, _SYMBOLIC_LINK = b"1", b"2"
_LINKS = (_HARD_LINK, _SYMBOLIC_LINK)
_WITHOUT_DATA = (*_LINKS, b"3", b"4", b"5", b"6")  # whatever size they claim
_SPARSE = b"S"
_GNU_KIND_TO_FIELD = {b"L": b"path", b"K": b"linkpath"}
_PAX_HEADERS = (b"x", b"X")  # the latter of Solaris
_SPARSE_NAME, _SPARSE_PREFIX = b"GNU.sparse.name", b"GNU.sparse."

_SPARSE_ERROR = "sparse member: expected one without holes (tar without --sparse)"
_START_TO_FORMAT = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"(\xb5/\xfd": "zstd",
    b"\x04\x22M\x18": "lz4",
    b"LZIP": "lzip",
    b"\x1f\x9d": "compress",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
    b"PAR1": "Parquet",
    b"<!": "HTML",
    b"<html": "HTML",
    b"<?xml": "XML",
    b'{"': "JSON",
    b"version https://git-lfs": "Git LFS pointer",
}


class TarError(ValueError):
    """A tar that is damaged or cut off; the message names the byte."""


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """One regular file of a tar, or a link to one."""

    name: str
    offset: int  # of the data, in bytes
    size: int  # bytes
    data: bytes | None  # None if it was not asked for
    error: str = ""  # why its data cannot be read


@dataclasses.dataclass(frozen=True, slots=True)
class _Header:
    name: bytes
    size: int
    kind: bytes
    offset: int  # of the data
    target: bytes = b""  # of a link

    @property
    def end(self) -> int:
        """Where the next header begins."""
        return self.offset + self.size + -self.size % _BLOCK_BYTES


def read_members(
    file: typing.BinaryIO, max_bytes: Callable[[str], int]
) -> Iterator[Member]:
    """Reads the regular files of a tar in their order, and the links to them.

    Args:
      file: a seekable file at its start.
      max_bytes: maps a name to the most bytes to read of such a member; the data of
        larger ones is passed over.

    Raises:
      TarError: where the tar is damaged, or ends without an end mark.
    """
    name_to_headers: dict[str, list[_Header]] | None = None
    while (header := _next_header(file)) is not None:
        end = header.end
        if header.kind in _REGULAR_FILES:
            yield _read_member(file, header, _text(header.name), max_bytes)
        elif header.kind in _LINKS:
            if name_to_headers is None:
                name_to_headers = _link_targets(file)
            yield _follow_link(file, header, name_to_headers, max_bytes)
        elif header.kind == _SPARSE:
            name = _text(header.name)
            yield Member(name, header.offset, header.size, None, _SPARSE_ERROR)
        file.seek(end)


def read_data(file: typing.BinaryIO, member: Member) -> Member:
    """The member with its data, wherever the file stands."""
    file.seek(member.offset)
    return dataclasses.replace(member, data=_read(file, member.size))


def _read_member(
    file: typing.BinaryIO, header: _Header, name: str, max_bytes: Callable[[str], int]
) -> Member:
    """Reads a member; the file is at its data."""
    data = _read(file, header.size) if header.size <= max_bytes(name) else None
    return Member(name, header.offset, header.size, data)


def _follow_link(
    file: typing.BinaryIO,
    link: _Header,
    name_to_headers: dict[str, list[_Header]],
    max_bytes: Callable[[str], int],
) -> Member:
    """A link as the member that it stands for."""
    name, header = _text(link.name), link
    for _ in range(_MAX_LINKS_IN_A_ROW):
        found = name_to_headers.get(_target(header), [])
        before = [target for target in found if target.offset < header.offset]
        if not found or header.kind not in _LINKS:
            break
        header = before[-1] if before else found[0]
    if header.kind == _SPARSE:
        return Member(name, link.offset, 0, None, _SPARSE_ERROR)
    if header.kind in _LINKS:
        shown = _text(link.target)[:_MAX_SHOWN_CHARS]
        error = f"link to {shown!r}: expected a member of the same tar"
        return Member(name, link.offset, 0, None, error)
    file.seek(header.offset)
    return _read_member(file, header, name, max_bytes)


def _target(link: _Header) -> str:
    """Name of the member that a link names; a symbolic one counts from its folder."""
    folder = posixpath.dirname(link.name) if link.kind == _SYMBOLIC_LINK else b""
    return _normalize(posixpath.join(folder, link.target))


def _normalize(name: bytes) -> str:
    return _text(posixpath.normpath(name))


def _link_targets(file: typing.BinaryIO) -> dict[str, list[_Header]]:
    """Name to members, of all that the tar holds before it is damaged."""
    name_to_headers: dict[str, list[_Header]] = {}
    file.seek(0)
    try:
        for _ in range(_MAX_LINK_TARGETS):
            header = _next_header(file)
            if header is None:
                break
            name_to_headers.setdefault(_normalize(header.name), []).append(header)
            file.seek(header.end)
    except TarError:
        pass  # the one who reads on comes there too
    return name_to_headers


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def _next_header(file: typing.BinaryIO) -> _Header | None:
    """The next header with its long name in place; None behind the end mark."""
    is_end = False
    overrides: dict[bytes, bytes] = {}
    while block := file.read(_BLOCK_BYTES):
        is_end = not any(block)
        if is_end:
            continue
        header = _parse_header(block, file.tell())
        if header.kind in _PAX_HEADERS or header.kind in _GNU_KIND_TO_FIELD:
            overrides |= _read_overrides(file, header)
            file.seek(header.end)
            continue
        if header.kind == _SPARSE and block[482]:
            header = _skip_sparse_map(file, header)
        return _apply_overrides(header, overrides)
    if not is_end:
        raise TarError(f"tar cut off at byte {file.tell()}: expected an end mark")
    return None


def _parse_header(block: bytes, offset: int) -> _Header:
    start = offset - len(block)
    if start == 0:
        _expect_tar(block)
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
    kind = block[156:157]
    if kind in _WITHOUT_DATA:
        target = block[157:257].partition(b"\0")[0]
        return _Header(name, 0, kind, offset, target)
    return _Header(name, _number(block[124:136], start), kind, offset)


def _expect_tar(block: bytes) -> None:
    """Names what calls itself a tar and is none; the name of a member comes first."""
    for start, name in _START_TO_FORMAT.items():
        if block.startswith(start) and block[257:262] != b"ustar":
            raise TarError(
                f"{name} file: expected a plain tar, which is not compressed"
            )


def _number(field: bytes, start: int) -> int:
    """A number in octal digits, or in binary behind a byte 0x80; blanks are 0."""
    text = field.partition(b"\0")[0].strip() or b"0"
    if field[0] == 0x80:
        value = int.from_bytes(field[1:], "big")
    elif text.isdigit() and not text.strip(b"01234567"):
        value = int(text, 8)
    else:
        raise TarError(f"tar damaged at byte {start}: {field!r} in a header")
    return _check_size(value, start)


def _check_size(value: int, start: int) -> int:
    if value > _MAX_MEMBER_BYTES:
        raise TarError(f"tar damaged at byte {start}: a member of {value} bytes")
    return value


def _skip_sparse_map(file: typing.BinaryIO, header: _Header) -> _Header:
    """GNU's list of holes goes on in blocks before the data."""
    while _read(file, _BLOCK_BYTES)[504]:
        pass
    return dataclasses.replace(header, offset=file.tell())


def _read_overrides(file: typing.BinaryIO, header: _Header) -> dict[bytes, bytes]:
    """Reads the fields that a GNU or pax header sets for the next member."""
    if header.size > _MAX_LONG_HEADER_BYTES:
        raise TarError(
            f"tar damaged at byte {header.offset}: a header of {header.size} bytes"
        )
    data = _read(file, header.size)
    if header.kind in _GNU_KIND_TO_FIELD:
        return {_GNU_KIND_TO_FIELD[header.kind]: data.rstrip(b"\0")}
    return dict(_pax_records(data, header.offset))


def _pax_records(data: bytes, offset: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields name and value of records `LENGTH NAME=VALUE`, each with a line end."""
    position = 0
    while position < len(data):
        length, _, _ = data[position : position + 20].partition(b" ")
        end = position + int(length) if length.isdigit() else 0
        if not position < end <= len(data):
            raise TarError(f"tar damaged at byte {offset + position}: a pax header")
        record = data[position + len(length) + 1 : end - 1]
        name, _, value = record.partition(b"=")
        yield name, value
        position = end


def _apply_overrides(header: _Header, overrides: dict[bytes, bytes]) -> _Header:
    if not overrides:
        return header
    size = overrides.get(b"size", b"%d" % header.size)
    if not size.isdigit():
        raise TarError(f"tar damaged at byte {header.offset}: a size of {size!r}")
    start = header.offset - _BLOCK_BYTES
    is_sparse = any(name.startswith(_SPARSE_PREFIX) for name in overrides)
    return dataclasses.replace(
        header,
        name=overrides.get(_SPARSE_NAME, overrides.get(b"path", header.name)),
        size=0 if header.kind in _WITHOUT_DATA else _check_size(int(size), start),
        kind=_SPARSE if is_sparse else header.kind,
        target=overrides.get(b"linkpath", header.target),
    )


def _read(file: typing.BinaryIO, n_bytes: int) -> bytes:
    data = file.read(n_bytes)
    if len(data) < n_bytes:
        raise TarError(f"tar cut off at byte {file.tell()}, inside a member")
    return data
