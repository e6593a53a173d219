"""Random access to the training records of one export.

    samples = Shards("RUN/tfrecords")
    samples[17].alt_text

A folder holds `manifest.json`, TFRecord shards and, beside each, an index with the
offset and length of every payload. Checksums of the records are not verified: they
cost more than the whole read in Python, and a broken image fails to decode.
"""

import bisect
import hashlib
import itertools
import json
import os
import pathlib
import struct

import numpy as np

from pipeline.records import INDEX_DTYPE, SCHEMA_VERSION, Sample, parse_sample

# TFRecord: length (8 bytes) and its checksum (4), the payload, its checksum (4).
_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4


class RecordError(ValueError):
    """A record that cannot be used. The message names its shard and its number."""


class Shards:
    """A sequence of samples, in the order of the manifest. Cheap to pickle.

    Files are opened for each read: that costs 10 us of the 2 ms that an image takes,
    and leaves nothing to close, to share between threads or to run out of.
    """

    def __init__(self, folder: str | pathlib.Path):
        """Raises ValueError when the folder is no complete export of our schema."""
        self._folder = pathlib.Path(folder)
        manifest = _manifest(self._folder)
        self.granularities: tuple[str, ...] = tuple(manifest["granularities"])
        self._names = [shard["name"] for shard in manifest["shards"]]
        counts = [shard["n_samples"] for shard in manifest["shards"]]
        self._ends = list(itertools.accumulate(counts))
        for name, count in zip(self._names, counts, strict=True):
            _check_shard(self._folder / name, count)
        if not len(self):
            raise ValueError(f"{self._folder}: 0 samples, expected at least one")
        contents = [(shard["name"], shard["sha256"]) for shard in manifest["shards"]]
        # Equal for equal bytes: a run may only go on with what it began with.
        self.fingerprint: str = hashlib.sha256(
            json.dumps(contents).encode()
        ).hexdigest()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sample:
        """Raises RecordError when the record is broken."""
        path, number = self._locate(index)
        try:
            return parse_sample(_payload(path, number))
        except ValueError as error:
            raise RecordError(f"{self.place(index)}: {error}") from error

    def place(self, index: int) -> str:
        """Where a sample lies, for people."""
        path, number = self._locate(index)
        return f"record {number} of {path}"

    def _locate(self, index: int) -> tuple[pathlib.Path, int]:
        """The shard of a sample, and its number in there."""
        shard = bisect.bisect_right(self._ends, index)
        start = self._ends[shard - 1] if shard else 0
        return self._folder / self._names[shard], index - start


def _manifest(folder: pathlib.Path) -> dict:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        version = manifest["schema_version"]
        missing = {"granularities", "shards"} - manifest.keys()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}, expected an export") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the manifest of an export") from error
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema_version={version}, expected {SCHEMA_VERSION}")
    if missing:
        raise ValueError(f"{path}: no {sorted(missing)[0]}, expected an export's")
    return manifest


def _check_shard(path: pathlib.Path, n_samples: int) -> None:
    """Compares sizes of a shard and its index, which finds what is cut or missing."""
    index = _index_path(path)
    for needed in (path, index):
        if not needed.is_file():
            raise ValueError(f"{needed}: missing, expected as the manifest names it")
    n_entries, rest = divmod(index.stat().st_size, INDEX_DTYPE.itemsize)
    if rest or n_entries != n_samples:
        raise ValueError(f"{index}: {n_entries} records, expected {n_samples}")
    if n_samples:
        offset, length = _index_entry(path, n_samples - 1)
        size = path.stat().st_size
        if offset + length + _FOOTER_BYTES != size:
            expected = offset + length + _FOOTER_BYTES
            raise ValueError(f"{path}: {size} bytes, expected {expected} by its index")


def _payload(path: pathlib.Path, number: int) -> bytes:
    """Raises ValueError when the index does not point at a record."""
    offset, length = _index_entry(path, number)
    if offset < _HEADER.size:
        raise ValueError(f"offset {offset} in the index, expected 12 or more")
    data = _read(path, offset - _HEADER.size, _HEADER.size + length)
    found, _ = _HEADER.unpack_from(data)
    if found != length:
        raise ValueError(f"{found} bytes, expected {length} by its index")
    return data[_HEADER.size :]


def _index_entry(path: pathlib.Path, number: int) -> tuple[int, int]:
    size = INDEX_DTYPE.itemsize
    entry = np.frombuffer(_read(_index_path(path), number * size, size), INDEX_DTYPE)
    return int(entry["offset"][0]), int(entry["length"][0])


def _index_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.index")


def _read(path: pathlib.Path, offset: int, length: int) -> bytes:
    """Raises ValueError when the file ends before."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)
    if len(data) != length:
        raise ValueError(f"{len(data)} bytes at {offset}, expected {length}")
    return data
