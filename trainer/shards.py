"""Random access to the training records of one export.

    samples = Shards("RUN/tfrecords")
    samples[17].alt_text

A folder, here or in an object store (`gs://`, `s3://`), holds `manifest.json`, TFRecord
shards and, beside each, an index with the offset and length of every payload. Checksums
of the records are not verified: they cost more than the whole read in Python, and a
broken image fails to decode.
"""

import bisect
import copy
import hashlib
import itertools
import json
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Self

from pipeline.records import INDEX_DTYPE, SCHEMA_VERSION, Sample, parse_sample
from trainer.blocks import HEADER_BYTES, INDEX_SUFFIX, Blocks
from trainer.folders import Folder, LocalFolder, open_folder

_MANIFEST = "manifest.json"

_LENGTH = struct.Struct("<Q")  # at the start of a record
_INDEX_ENTRY = struct.Struct("<QQ")  # INDEX_DTYPE

_SHARD_FIELDS = {"name", "n_samples", "n_bytes", "sha256"}


class RecordError(ValueError):
    """A record that cannot be used. The message names its shard and its number."""


class Shards:
    """A sequence of samples, in the order of the manifest. Cheap to pickle.

    Of a local folder records are read one by one, of an object store in blocks.
    """

    def __init__(self, folder: str | pathlib.Path):
        """Raises ValueError when the folder is no complete export of our schema."""
        self._folder = open_folder(str(folder))
        manifest = _manifest(self._folder)
        self.granularities: tuple[str, ...] = tuple(manifest["granularities"])
        self._names = [shard["name"] for shard in manifest["shards"]]
        counts = [shard["n_samples"] for shard in manifest["shards"]]
        self._ends = list(itertools.accumulate(counts))
        _check_sizes(self._folder, manifest["shards"])
        if not len(self):
            raise ValueError(f"{folder}: 0 samples, expected at least one")
        contents = [(shard["name"], shard["sha256"]) for shard in manifest["shards"]]
        # Equal for equal bytes: a run may only go on with what it began with.
        self.fingerprint: str = hashlib.sha256(
            json.dumps(contents).encode()
        ).hexdigest()
        self._n_records_per_block = 1
        self._blocks = Blocks(self._folder, 1)

    def in_blocks(self, n_records: int, n_kept: int) -> Self:
        """The same samples; each request to an object store brings `n_records`.

        The last `n_kept` blocks stay in memory. Record i is in block i div `n_records`;
        a block that spans two shards takes a request to each. A local folder is read
        as before: the system keeps what was read.
        """
        other = copy.copy(self)
        other._n_records_per_block = n_records
        other._blocks = Blocks(self._folder, n_kept)
        return other

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sample:
        """Raises RecordError when the record is broken."""
        try:
            return parse_sample(self._payload(index))
        except ValueError as error:
            raise RecordError(f"{self.place(index)}: {error}") from error

    def place(self, index: int) -> str:
        """Where a sample lies, for people."""
        shard, start = self._locate(index)
        return f"record {index - start} of {self._folder.path(self._names[shard])}"

    def _payload(self, index: int) -> bytes:
        """Raises ValueError when the index does not point at a record."""
        shard, start = self._locate(index)
        name, number = self._names[shard], index - start
        if isinstance(self._folder, LocalFolder):
            record, length = _local_record(self._folder, name, number)
        else:
            n = self._n_records_per_block
            first = index // n * n - start
            block = range(max(first, 0), min(first + n, self._ends[shard] - start))
            record, length = self._blocks.record(name, number, block)
        (found,) = _LENGTH.unpack_from(record)
        if found != length:
            raise ValueError(f"{found} bytes, expected {length} by its index")
        return record[HEADER_BYTES:]

    def _locate(self, index: int) -> tuple[int, int]:
        """The shard of a sample, and the first sample in there."""
        shard = bisect.bisect_right(self._ends, index)
        return shard, self._ends[shard - 1] if shard else 0


def _manifest(folder: Folder) -> dict:
    path = folder.path(_MANIFEST)
    try:
        manifest = json.loads(folder.read(_MANIFEST))
        version = manifest["schema_version"]
        missing = {"granularities", "shards"} - manifest.keys()
        for shard in manifest.get("shards", ()):
            missing |= _SHARD_FIELDS - shard.keys()
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{path}: {reason}, expected an export") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected the manifest of an export") from error
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema_version={version}, expected {SCHEMA_VERSION}")
    if missing:
        raise ValueError(f"{path}: no {sorted(missing)[0]}, expected an export's")
    return manifest


def _check_sizes(folder: Folder, shards: Sequence[Mapping]) -> None:
    """Finds what is cut or missing, from one listing: there may be 10,000 shards."""
    sizes = folder.sizes()
    for shard in shards:
        name, index = shard["name"], shard["name"] + INDEX_SUFFIX
        for needed in (name, index):
            if needed not in sizes:
                path = folder.path(needed)
                raise ValueError(f"{path}: missing, expected as the manifest names it")
        n, rest = divmod(sizes[index], INDEX_DTYPE.itemsize)
        if rest or n != shard["n_samples"]:
            expected = f"{n} records, expected {shard['n_samples']}"
            raise ValueError(f"{folder.path(index)}: {expected}")
        if sizes[name] != shard["n_bytes"]:
            expected = f"{sizes[name]} bytes, expected {shard['n_bytes']}"
            raise ValueError(f"{folder.path(name)}: {expected}")


def _local_record(folder: LocalFolder, shard: str, number: int) -> tuple[bytes, int]:
    """Header and payload, and the payload's length by the index."""
    size = _INDEX_ENTRY.size
    entry = _read(folder, shard + INDEX_SUFFIX, number * size, size)
    offset, length = _INDEX_ENTRY.unpack(entry)
    if offset < HEADER_BYTES:
        raise ValueError(f"offset {offset} in the index, expected 12 or more")
    start = offset - HEADER_BYTES
    return _read(folder, shard, start, HEADER_BYTES + length), length


def _read(folder: LocalFolder, name: str, start: int, length: int) -> bytes:
    """Raises ValueError when the file ends before."""
    data = folder.read(name, start, length)
    if len(data) != length:
        raise ValueError(f"{len(data)} bytes at {start}, expected {length}")
    return data
