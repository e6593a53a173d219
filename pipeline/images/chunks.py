"""The chunks of a PNG: found, checked, and written again without what is not needed.

Source: PNG, third edition (W3C).
"""

import dataclasses
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from pipeline.images import exif, icc
from pipeline.images.interface import ImageError

START = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 100_000
_HEADER = struct.Struct(">IIBB")
_HEADER_BYTES = 13
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_GRAY, _COLOR = 0, 2  # types of color without palette and alpha

# Ancillary chunks that every reader takes if they have their length; None: any.
_KIND_TO_N_BYTES = {
    b"gAMA": 4,
    b"cHRM": 32,
    b"sRGB": 1,
    b"pHYs": 9,
    b"tIME": 7,
    **dict.fromkeys((b"sBIT", b"bKGD", b"hIST", b"tEXt", b"iCCP", b"eXIf")),
}
_EXIF_KEYWORDS = (b"Raw profile type exif", b"Raw profile type APP1")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """One chunk of a PNG."""

    data: bytes  # with length, kind and checksum

    @property
    def kind(self) -> bytes:
        """Four letters, such as `IDAT`."""
        return self.data[4:8]

    @property
    def body(self) -> bytes:
        """The data without length, kind and checksum."""
        return self.data[8:-4]

    @property
    def is_critical(self) -> bool:
        """Whether pixels are made of it; no reader knows others in capitals."""
        return self.kind in _CRITICAL

    @property
    def is_sound(self) -> bool:
        """Whether its checksum is right."""
        return zlib.crc32(self.data[4:-4]) == int.from_bytes(self.data[-4:])


class Header(NamedTuple):
    """The fields of IHDR that matter here."""

    width: int
    height: int
    bit_depth: int
    color_type: int


@dataclasses.dataclass(frozen=True)
class Chunks:
    """All chunks of a PNG up to its end."""

    data: bytes
    found: Sequence[Chunk]
    header: Header

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Raises ImageError if the file is cut short or does not begin with IHDR."""
        found = list(_split(data))
        first = found[0]
        if first.kind != b"IHDR" or len(first.body) != _HEADER_BYTES:
            raise ImageError(f"PNG: begins with {first.kind!r}, expected IHDR")
        return cls(data, found, Header(*_HEADER.unpack_from(first.body)))

    @property
    def n_frames(self) -> int:
        """Frames of an animation; 1 without one."""
        animation = self._body(b"acTL")
        return int.from_bytes(animation[:4]) if animation else 1

    @property
    def exif(self) -> bytes | None:
        """The EXIF block of its own chunk, or of a text as ImageMagick wrote it."""
        block = self._body(b"eXIf")
        return block if block is not None else next(self._exif_texts(), None)

    @property
    def profile(self) -> bytes:
        """An ICC profile; empty without one."""
        body = self._body(b"iCCP")
        if body is None:
            return b""
        packed = body.partition(b"\0")[2][1:]
        return _unpack(packed, icc.MAX_PROFILE_BYTES) or icc.UNREADABLE

    @property
    def has_transparency(self) -> bool:
        """Whether a chunk names a transparent color."""
        return self._body(b"tRNS") is not None

    @property
    def of_pixels(self) -> bytes:
        """The same image with the chunks that pixels are made of, and no others."""
        kept = [chunk for chunk in self.found if chunk.is_critical]
        transparency = self._body(b"tRNS")
        if transparency is not None:
            kinds = [chunk.kind for chunk in kept]
            at = kinds.index(b"IDAT") if b"IDAT" in kinds else 1
            kept.insert(at, _encode(b"tRNS", self._to_pillow(transparency)))
        return _join(kept)

    @property
    def harmless(self) -> bytes:
        """The file, without what some reader may refuse, unpack or misread."""
        seen: set[bytes] = set()
        kept = []
        for chunk in self.found:
            if chunk.is_critical:
                kept.append(_encode(chunk.kind, chunk.body))  # the checksum is right
            elif chunk.kind not in seen and _is_harmless(chunk):
                kept.append(chunk)
            if chunk.kind != b"tEXt":  # of which there may be several
                seen.add(chunk.kind)
        return _join(kept)

    def _body(self, kind: bytes) -> bytes | None:
        """The body of the first chunk of that kind with a right checksum."""
        for chunk in self.found:
            if chunk.kind == kind and chunk.is_sound:
                return chunk.body
        return None

    def _exif_texts(self) -> Iterator[bytes]:
        for chunk in self.found:
            if chunk.kind in (b"tEXt", b"zTXt"):
                keyword, _, text = chunk.body.partition(b"\0")
                if keyword in _EXIF_KEYWORDS:
                    is_packed = chunk.kind == b"zTXt"
                    text = _unpack(text[1:], exif.MAX_HEX_BYTES) if is_packed else text
                    yield exif.from_hex(text)

    def _to_pillow(self, transparency: bytes) -> bytes:
        """Pillow scales gray of 2 and 4 bits, and halves 16-bit color, but not this."""
        depth, color_type = self.header.bit_depth, self.header.color_type
        if color_type == _GRAY and depth in (2, 4):
            level = int.from_bytes(transparency) * 255 // (2**depth - 1)
            return level.to_bytes(2)
        if color_type == _COLOR and depth == 16:
            return bytes(b for high in transparency[:6:2] for b in (0, high))
        return transparency


def _is_harmless(chunk: Chunk) -> bool:
    if chunk.kind not in _KIND_TO_N_BYTES or not chunk.is_sound:
        return False
    if chunk.kind == b"eXIf":
        return exif.orientation(chunk.body) == 1
    is_hex = chunk.body.startswith(b"Raw profile type")
    return not is_hex and _KIND_TO_N_BYTES[chunk.kind] in (None, len(chunk.body))


def _split(data: bytes) -> Iterator[Chunk]:
    at = len(START)
    for _ in range(_MAX_CHUNKS):
        stop = at + 12 + int.from_bytes(data[at : at + 4])
        if len(data) < stop:
            raise ImageError("PNG: truncated, its end is missing")
        chunk = Chunk(data[at:stop])
        yield chunk
        if chunk.kind == b"IEND":
            return
        at = stop
    raise ImageError(f"PNG: expected at most {_MAX_CHUNKS} chunks")


def _join(chunks: Sequence[Chunk]) -> bytes:
    return START + b"".join(chunk.data for chunk in chunks)


def _encode(kind: bytes, body: bytes) -> Chunk:
    checksum = zlib.crc32(kind + body).to_bytes(4)
    return Chunk(len(body).to_bytes(4) + kind + body + checksum)


def _unpack(packed: bytes, max_bytes: int) -> bytes:
    """Empty if it is damaged or longer."""
    try:
        found = zlib.decompressobj().decompress(packed, max_bytes + 1)
    except zlib.error:
        return b""
    return found if len(found) <= max_bytes else b""
