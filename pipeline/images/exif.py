"""Orientation out of an EXIF block, and nothing else of it.

Source: EXIF 2.32, 4.6 (CIPA DC-008), whose blocks are TIFF files.
"""

import re
import struct

_ORIENTATION = 0x0112
_TYPE_TO_FORMAT = {1: "B3x", 3: "H2x", 4: "I", 6: "b3x", 8: "h2x", 9: "i"}  # integers
_ENTRY_BYTES = 12
_PREFIX = re.compile(
    rb"Exif\0.", re.DOTALL
)  # some writers put it into PNG and WebP too
_HEX_HEADER = re.compile(rb"\s*(?:exif|APP1)\s+\d+\s+", re.IGNORECASE)
MAX_HEX_BYTES = 1 << 18  # of a block of 64 kB, as in JPEGs
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*[2-8]")


def orientation(block: bytes) -> int:
    """The orientation, 1 to 8: 1 if the block has none, 0 if it cannot be read."""
    if match := _PREFIX.match(block):
        block = block[match.end() :]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 0
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (n_entries,) = struct.unpack_from(f"{order}H", block, start)
    except struct.error:
        return 0
    return _find(block[start + 2 :][: n_entries * _ENTRY_BYTES], order)


def _find(entries: bytes, order: str) -> int:
    """A directory that is cut short counts as far as it goes."""
    whole = entries[: len(entries) // _ENTRY_BYTES * _ENTRY_BYTES]
    for tag, kind, n, value in struct.iter_unpack(f"{order}HHI4s", whole):
        if tag == _ORIENTATION:
            if n != 1 or kind not in _TYPE_TO_FORMAT:
                return 0
            (found,) = struct.unpack(order + _TYPE_TO_FORMAT[kind], value)
            return found if 1 <= found <= 8 else 0
    return 1


def turns(xmp: bytes) -> bool:
    """Whether XMP has an orientation, which some readers honor; `decode` does not."""
    return _XMP_ORIENTATION.search(xmp) is not None


def from_hex(text: bytes) -> bytes:
    """The block in a "raw profile" of ImageMagick; what is none cannot be read."""
    match = _HEX_HEADER.match(text)
    try:
        return bytes.fromhex(text[match.end() :].decode("ascii")) if match else b""
    except ValueError:
        return b""
