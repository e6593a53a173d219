"""The bytes around each payload of a TFRecord file, and their checksums.

A record is the length of its payload (8 bytes), the checksum of these 8 bytes, the
payload, and the checksum of the payload. Both are checked. They are masked CRC-32C,
computed at several GB/s: 5 microseconds for the record of a photo.
Source: https://www.tensorflow.org/tutorials/load_data/tfrecord
"""

import struct
from typing import NamedTuple

import google_crc32c

HEADER_BYTES = 12
FOOTER_BYTES = 4

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_LENGTH_BYTES = 8


class ShardFile(NamedTuple):
    """The name and the size of a shard."""

    name: str
    n_bytes: int


def span(shard: ShardFile, offset: int, length: int) -> tuple[int, int]:
    """Returns where a record begins and ends, by the indexed place of its payload.

    Raises ValueError if that is not inside the shard.
    """
    if offset < HEADER_BYTES:
        expected = f"expected {HEADER_BYTES} or more"
        raise ValueError(f"offset {offset} in the index, {expected}")
    start, end = offset - HEADER_BYTES, offset + length + FOOTER_BYTES
    if end > shard.n_bytes:
        n_left = max(shard.n_bytes - start, 0)
        raise ValueError(f"{n_left} bytes at {start}, expected {end - start}")
    return start, end


def payload(record: bytes, length: int) -> bytes:
    """Returns the payload of a whole record, of `length` bytes according to the index.

    Raises ValueError if a checksum or the length is wrong.
    """
    found, length_checksum = _HEADER.unpack_from(record)
    _check(record[:_LENGTH_BYTES], length_checksum, "its length")
    if found != length:
        raise ValueError(f"{found} bytes, expected {length} by its index")
    data = record[HEADER_BYTES:-FOOTER_BYTES]
    (checksum,) = _FOOTER.unpack(record[-FOOTER_BYTES:])
    _check(data, checksum, "its data")
    return data


def _check(data: bytes, expected: int, what: str) -> None:
    found = _mask(google_crc32c.value(data))
    if found != expected:
        raise ValueError(f"checksum {found:08x} of {what}, expected {expected:08x}")


def _mask(checksum: int) -> int:
    rotated = checksum >> 15 | checksum << 17
    return (rotated + 0xA282EAD8) & 0xFFFFFFFF
