"""Which lots hold a sample id: a small file beside each table of pairs.

In: the ids of a lot, while its table of pairs is written. Out: `<lot>.ids`, of which
one small range says whether the lot may hold an id. The range is known beforehand, so
that a pair among ten thousand lots is found by one request a lot, all at once, and no
table but its own is read.

The file is an array of buckets of 112 numbers, uint32 [n, 112], little-endian. The
first bits of an id name its bucket, and bytes 4 to 8 of it are a number there; 0 marks
an empty place. A bucket without an empty place may hold any id.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa

from pipeline.storage import files
from pipeline.storage.prefetch import map_ahead
from pipeline.storage.tables import LotTables

N_BUCKETS = "id_buckets"  # the fact in the summary of a table that has an index
SUFFIX = ".ids"

_CAPACITY = 112  # ids of a bucket; one that is filled to its mean has 64
_MEAN = 64
_BUCKET_BYTES = 4 * _CAPACITY
_N_AT_ONCE = 64  # requests


def count_buckets(n_rows: int) -> int:
    """How many buckets the index of so many rows has, a power of two."""
    return 1 << max(0, (n_rows - 1) // _MEAN).bit_length()


def n_bytes(n_rows: int) -> int:
    """Bytes of the index of so many rows."""
    return _BUCKET_BYTES * count_buckets(n_rows)


def write_beside(
    rows: Iterable[pa.Table], tables: LotTables, lot_name: str, n_buckets: int
) -> Iterator[pa.Table]:
    """Passes rows of pairs on; at their end writes the index of their ids."""
    ids = []
    for part in rows:
        ids.append(part["sample_id"])
        yield part
    found = pa.chunked_array([chunk for column in ids for chunk in column.chunks])
    files.write(path_of(tables, lot_name), build(found, n_buckets))


def path_of(tables: LotTables, lot_name: str) -> str:
    """Where the index of a lot lies."""
    return files.join(tables.folder, f"{lot_name}{SUFFIX}")


def delete(tables: LotTables, lot_names: Iterable[str]) -> None:
    """Removes the indexes of some lots."""
    files.delete(tables.folder, [f"{name}{SUFFIX}" for name in lot_names])


def build(sample_ids: pa.ChunkedArray, n_buckets: int) -> bytes:
    """The index of some ids, each of 16 bytes."""
    data = b"".join(sample_ids.to_pylist())
    starts = np.unique(np.frombuffer(data, ">u8")[::2].astype(np.uint64))
    bucket = _bucket_of(starts, n_buckets)
    place = np.arange(len(bucket)) - np.searchsorted(bucket, bucket)
    fits = place < _CAPACITY
    buckets = np.zeros((n_buckets, _CAPACITY), "<u4")
    buckets[bucket[fits], place[fits]] = _number_of(starts[fits])
    return buckets.tobytes()


def find_lots(
    tables: LotTables, name_to_summary: Mapping[str, Mapping], sample_id: bytes
) -> list[str]:
    """Names of the lots that may hold an id, in order.

    A lot without an index may hold any.
    """
    start = np.frombuffer(sample_id[:8], ">u8").astype(np.uint64)
    look = functools.partial(_may_hold, tables, start)
    names = list(name_to_summary)
    items = ((n, name_to_summary[n].get(N_BUCKETS)) for n in names)
    found = map_ahead(look, items, _N_AT_ONCE, n_threads=_N_AT_ONCE)
    return [name for name, is_there in zip(names, found, strict=True) if is_there]


def _may_hold(
    tables: LotTables, start: np.ndarray, lot: tuple[str, int | None]
) -> bool:
    name, n_buckets = lot
    if n_buckets is None:
        return True
    first = int(_bucket_of(start, n_buckets)[0]) * _BUCKET_BYTES
    try:
        data = files.read_range(path_of(tables, name), first, _BUCKET_BYTES)
    except FileNotFoundError:
        return True
    bucket = np.frombuffer(data, "<u4")
    return bool((bucket == _number_of(start)).any() or bucket.all())


def _bucket_of(starts: np.ndarray, n_buckets: int) -> np.ndarray:
    """Numbers of the buckets of ids: int64 [n]."""
    n_bits = n_buckets.bit_length() - 1
    return ((starts >> np.uint64(32)) >> np.uint64(32 - n_bits)).astype(np.int64)


def _number_of(starts: np.ndarray) -> np.ndarray:
    """What a bucket holds of ids, never 0: uint32 [n]."""
    return np.maximum(starts & np.uint64(0xFFFF_FFFF), np.uint64(1)).astype(np.uint32)
