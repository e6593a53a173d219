"""The segments of a JPEG: found, classified, and written again without their slips.

Slips cost no pixel, but libjpeg warns of them as it warns of damage: the scan headers
of some phones, an unknown revision of JFIF or transform of Adobe's, bytes between
segments. Nothing behind the end of the image is looked at. Source: ITU-T T.81, annex B.
"""

import dataclasses
import functools
import re
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from pipeline.images import icc
from pipeline.images.interface import ImageError

_START = b"\xff\xd8"
_SOS, _EOI, _APP0, _APP1, _APP2, _APP14, _COM = 0xDA, 0xD9, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those three are no frames
_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})
_FULL_SCANS = frozenset({0xC0, 0xC1})  # whose blocks all take bits: none is for free
_MENDED = frozenset({_SOS, _APP0, _APP14})  # segments that may have slips
_METADATA = frozenset({*range(_APP0, _APP0 + 16), _COM})
_BARE = frozenset({0x01, 0xD8, _EOI, *range(0xD0, 0xD8)})  # markers without a length
_NO_MARKERS = (0x00, 0xFF)  # behind a byte 0xFF: stuffing, and filling
_MARKER = re.compile(rb"\xff[^\x00\xff]")
# But for stuffing and restarts. Begun with a literal, it is found 20 times as fast.
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")

_EXIF, _ICC, _XMP = b"Exif\0", b"ICC_PROFILE\0", b"http://ns.adobe.com/xap/1.0/\0"
_ADOBE, _JFIF, _MPF = b"Adobe", b"JFIF\0", b"MPF\0"
_ADOBE_BYTES, _JFIF_BYTES = 12, 14  # at least: decoders do not look at shorter ones
_ADOBE_TRANSFORM, _JFIF_MAJOR = 11, 5  # where they stand
_COMPONENTS_TO_TRANSFORMS = {3: b"\1\0", 4: b"\2\0"}  # known; the usual one first
_ALL_COEFFICIENTS = b"\x00\x3f\x00"  # how the header of a sequential scan ends

_MAX_SCANS = 100  # libjpeg writes 10; each is a pass over all blocks
_MAX_SEGMENTS = 10_000  # 64 MiB of full ones are 1,024
_MIN_FILL = 7  # zero bytes; of fewer libjpeg does not warn


class Segment(NamedTuple):
    """A marker, its parameters, and for a scan the compressed data behind them."""

    marker: int
    start: int
    stop: int  # behind everything
    body: bytes  # the parameters, without their length


class Frame(NamedTuple):
    """How pixels are compressed, and how many there are."""

    marker: int
    height: int
    width: int
    n_components: int


@dataclasses.dataclass(frozen=True)
class Segments:
    """The segments of a JPEG behind its first marker."""

    data: bytes
    head: Sequence[Segment]  # up to the header of the first scan
    frame: Frame

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Raises ImageError without a frame and a scan, or with too many scans."""
        head = _split(data, to_end=False)
        frame = next((s for s in head if s.marker in _FRAMES), None)
        if frame is None or head[-1].marker != _SOS or len(frame.body) < 6:
            raise ImageError("JPEG: expected a frame and a scan")
        height, width, n_components = struct.unpack_from(">HHB", frame.body, 1)
        if not height * width:  # some scanners write the height behind the scan
            raise ImageError(f"JPEG: {width} x {height} pixels in its header")
        segments = cls(data, head, Frame(frame.marker, height, width, n_components))
        if frame.marker not in _FULL_SCANS:
            segments.expect_few_scans()
        return segments

    @functools.cached_property
    def found(self) -> Sequence[Segment]:
        """All of them; the last one is the end. Raises ImageError if that is missing.

        Reading them takes a twentieth of the time of decoding, so it is put off.
        """
        return _split(self.data, to_end=True)

    def expect_few_scans(self) -> None:
        """Raises ImageError if decoding would take too many passes."""
        n_scans = sum(segment.marker == _SOS for segment in self.found)
        if n_scans > _MAX_SCANS:
            raise ImageError(f"{n_scans} scans: expected at most {_MAX_SCANS}")

    @property
    def exif(self) -> bytes | None:
        """The first block; the thumbnail in it may have one of its own."""
        return next(self._bodies(_APP1, _EXIF), None)

    @property
    def profile(self) -> bytes:
        """An ICC profile, which may lie in several segments; empty without one."""
        parts = {body[12]: body for body in self._bodies(_APP2, _ICC) if body[13:]}
        if not parts:
            return b""
        is_whole = sorted(parts) == list(range(1, parts[min(parts)][13] + 1))
        whole = b"".join(parts[number][14:] for number in sorted(parts))
        return whole if is_whole else icc.UNREADABLE

    @property
    def xmp(self) -> bytes:
        """All XMP packets; empty without one."""
        return b"".join(self._bodies(_APP1, _XMP))

    @property
    def is_adobe(self) -> bool:
        """Whether Adobe's segment is there, with which inks are stored inverted."""
        return any(map(_is_adobe, self.head))

    @property
    def is_readable_by_all(self) -> bool:
        """Whether no reader stumbles over metadata; Pillow does, see `_is_odd`."""
        return not any(map(_is_odd, self.head))

    def have_slips(self, segments: Sequence[Segment]) -> bool:
        """Whether some of the first segments must be written otherwise."""
        stop = len(_START)
        for segment in segments:
            is_next = segment.start == stop
            if not is_next and self.data[stop : segment.start].strip(b"\xff"):
                return True
            if segment.marker in _MENDED and self._mended(segment) != segment.body:
                return True
            stop = segment.stop
        return False

    @property
    def is_followed(self) -> bool:
        """Whether anything lies behind the image, as the film of a motion photo."""
        return self.found[-1].stop < len(self.data)

    @property
    def has_fill(self) -> bool:
        """Whether a scan ends with zeros, which may be no part of it."""
        scans = [s for s in self.found if s.marker == _SOS]
        return any(self._scan(s, with_fill=False) != self._scan(s) for s in scans)

    def rewritten(self, *, with_fill: bool = True) -> bytes:
        """The same image without slips, metadata and what follows it."""
        parts = [_START]
        for segment in self.found:
            if segment.marker in _METADATA and not _is_of_pixels(segment):
                continue
            head_bytes = 2 if segment.marker in _BARE else 4
            parts.append(self.data[segment.start : segment.start + head_bytes])
            parts.append(self._mended(segment))
            parts.append(self._scan(segment, with_fill=with_fill))
        return b"".join(parts)

    def _bodies(self, marker: int, start: bytes) -> Iterator[bytes]:
        for segment in self.head:
            if segment.marker == marker and segment.body.startswith(start):
                yield segment.body

    def _scan(self, segment: Segment, *, with_fill: bool = True) -> bytes:
        """The compressed data; empty for what is no scan."""
        if segment.marker != _SOS:
            return b""
        data = self.data[segment.start + 4 + len(segment.body) : segment.stop]
        used = data.rstrip(b"\xff").rstrip(b"\0")
        if with_fill or len(data) - len(used) < _MIN_FILL:
            return data
        return used + b"\0" if used.endswith(b"\xff") else used

    def _mended(self, segment: Segment) -> bytes:
        """Its parameters without slips."""
        body = segment.body
        if segment.marker == _SOS and self.frame.marker in _SEQUENTIAL:
            return body[:-3] + _ALL_COEFFICIENTS
        if _is_jfif(segment) and body[_JFIF_MAJOR] != 1:
            return body[:_JFIF_MAJOR] + b"\1\1" + body[_JFIF_MAJOR + 2 :]
        if _is_adobe(segment):
            known = _COMPONENTS_TO_TRANSFORMS.get(self.frame.n_components, b"")
            if known and body[_ADOBE_TRANSFORM] not in known:
                at = _ADOBE_TRANSFORM
                return body[:at] + known[:1] + body[at + 1 :]
        return body


def _is_jfif(segment: Segment) -> bool:
    body = segment.body
    is_long = len(body) >= _JFIF_BYTES
    return segment.marker == _APP0 and is_long and body.startswith(_JFIF)


def _is_adobe(segment: Segment) -> bool:
    body = segment.body
    is_long = len(body) >= _ADOBE_BYTES
    return segment.marker == _APP14 and is_long and body.startswith(_ADOBE)


def _is_odd(segment: Segment) -> bool:
    """Whether a header is cut short, or an index names images behind this one."""
    marker, body = segment.marker, segment.body
    if marker == _APP0:
        return body.startswith(_JFIF[:-1]) and not _is_jfif(segment)
    if marker == _APP14:
        return body.startswith(_ADOBE) and not _is_adobe(segment)
    return marker == _APP2 and body.startswith(_MPF)


def _is_of_pixels(segment: Segment) -> bool:
    """Whether metadata says what the components are."""
    return _is_jfif(segment) or _is_adobe(segment)


def _split(data: bytes, *, to_end: bool) -> list[Segment]:
    """The segments up to the end of the image, or the header of its first scan.

    Raises ImageError if that is missing.
    """
    found: list[Segment] = []
    at, n_bytes = len(_START), len(data)
    while len(found) < _MAX_SEGMENTS:
        start = at
        if at + 4 > n_bytes or data[at] != 0xFF or data[at + 1] in _NO_MARKERS:
            if (match := _MARKER.search(data, at)) is None:
                break
            start = match.start()
        marker, at, body = data[start + 1], start + 2, b""
        if marker not in _BARE:
            stop = at + int.from_bytes(data[at : at + 2])
            if not at + 2 <= stop <= n_bytes:
                break
            body, at = data[at + 2 : stop], stop
        if marker == _SOS and to_end:
            end = _SCAN_END.search(data, at)
            at = end.start() if end else n_bytes
        found.append(Segment(marker, start, at, body))
        if marker == _EOI or (marker == _SOS and not to_end):
            return found
    else:
        raise ImageError(f"JPEG: expected at most {_MAX_SEGMENTS} segments")
    raise ImageError("JPEG: truncated, its end is missing")
