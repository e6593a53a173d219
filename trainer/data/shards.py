"""Random access to the training records of one export.

    samples = Shards("RUN/tfrecords")
    samples[17].alt_text

A folder, on a disk or in an object store (`gs://`, `s3://`), holds `manifest.json`,
TFRecord shards and, for each shard, an index with the offset and length of every
payload. Opening compares sizes, reading a record compares both of its checksums, and
`trainer.verify` compares whole shards with the manifest.
"""

import bisect
import copy
import hashlib
import itertools
import json
import pathlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import numpy as np

from pipeline.records import INDEX_DTYPE, SCHEMA_VERSION, Sample, parse_sample
from pipeline.storage import files, places
from trainer.data import tfrecords
from trainer.data.block_cache import INDEX_SUFFIX, BlockReader
from trainer.data.tfrecords import ShardFile

_MANIFEST = "manifest.json"

_INDEX_ENTRY = struct.Struct("<QQ")  # INDEX_DTYPE

_N_BEFORE_SHARE = 10_000
_PIECE_BYTES = 1 << 26  # read at a time

_SHARD_FIELDS = {"name", "n_samples", "n_bytes", "sha256"}


class RecordError(ValueError):
    """A record that cannot be used. The message names its shard and its number."""


class Shards:
    """A sequence of samples, in the order of the manifest. Cheap to pickle.

    Records of a local folder are read one by one, those of an object store in blocks.
    `len(shards)` is the number of samples, and `shards[i]` is a
    `pipeline.records.Sample`.
    """

    def __init__(self, folder: str | pathlib.Path):
        """Raises ValueError if the folder is no complete export of our schema."""
        self._folder = str(folder)
        places.check([("data", files.join(self._folder, _MANIFEST))])
        manifest = _read_whole_export(self._folder)
        self.granularities: tuple[str, ...] = tuple(manifest["granularities"])
        self._files = [ShardFile(x["name"], x["n_bytes"]) for x in manifest["shards"]]
        counts = [shard["n_samples"] for shard in manifest["shards"]]
        self._ends = list(itertools.accumulate(counts))
        if not len(self):
            raise ValueError(f"{folder}: 0 samples, expected at least one")
        contents = [(shard["name"], shard["sha256"]) for shard in manifest["shards"]]
        # Equal for equal bytes: a run may only resume with the shards it started with.
        self.fingerprint: str = hashlib.sha256(
            json.dumps(contents).encode()
        ).hexdigest()
        self._n_records_per_block = 1
        self._blocks = BlockReader(self._folder, 1, keeps_indexes=True)

    def in_blocks(self, n_records: int, n_kept: int) -> Self:
        """Returns the same samples; each request to an object store brings `n_records`.

        The last `n_kept` blocks stay in memory. Record i is in block i div `n_records`;
        a block that spans two shards takes one request to each. A local folder is read
        as before: the system keeps what was read.
        """
        other = copy.copy(self)
        other._n_records_per_block = n_records
        is_single = n_records == 1
        other._blocks = BlockReader(self._folder, n_kept, keeps_indexes=is_single)
        return other

    @property
    def is_remote(self) -> bool:
        """Whether the folder is in an object store."""
        return files.is_remote(self._folder)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sample:
        """Raises RecordError if the record is broken."""
        n = self._n_records_per_block
        first = index // n * n
        return self._sample(index, range(first, first + n), is_shown_once=False)

    def read(self, index: int, block: range) -> Sample:
        """Reads a sample; if it comes from an object store, with others of `block`.

        They stay in memory until each was read once. Raises RecordError if the record
        is broken.
        """
        return self._sample(index, block, is_shown_once=True)

    def _sample(self, index: int, block: range, *, is_shown_once: bool) -> Sample:
        try:
            return parse_sample(self._payload(index, block, is_shown_once))
        except ValueError as error:
            raise RecordError(f"{self.place(index)}: {error}") from error

    def place(self, index: int) -> str:
        """Returns the shard and the number of a record, for messages."""
        shard, start = self._locate(index)
        return f"record {index - start} of {self._path(self._files[shard])}"

    def damages(self) -> Iterator[str]:
        """Reads all shards, and yields one line per difference from the manifest.

        A difference is a broken record, an index that omits or repeats a record, or a
        shard whose bytes are not those of the manifest although every record is whole.
        """
        described = _read_manifest(self._folder)["shards"]
        name_to_sha256 = {shard["name"]: shard["sha256"] for shard in described}
        starts = [0, *self._ends[:-1]]
        for number, shard in enumerate(self._files):
            path = self._path(shard)
            if shard.name not in name_to_sha256:
                yield f"{path}: the manifest does not name it any more"
                continue
            expected = name_to_sha256[shard.name]
            found = _digest(self._folder, shard)
            is_indexed = _is_contiguous(self._folder, shard)
            if found != expected or not is_indexed:
                yield from self._damaged(range(starts[number], self._ends[number]))
            if found != expected:
                yield f"{path}: sha256 {found}, expected {expected}"
            if not is_indexed:
                yield f"{path}{INDEX_SUFFIX}: expected each record of the shard once"

    def _damaged(self, indices: range) -> Iterator[str]:
        for index in indices:
            try:
                self[index]
            except RecordError as error:
                yield str(error)

    def _payload(self, index: int, block: range, is_shown_once: bool) -> bytes:
        """Raises ValueError if the index does not point at a whole record."""
        number, start = self._locate(index)
        shard, record_number = self._files[number], index - start
        if not self.is_remote:
            return tfrecords.payload(*_local_record(self._folder, shard, record_number))
        end = self._ends[number]
        block = range(max(block.start, start) - start, min(block.stop, end) - start)
        n_uses = len(block) if is_shown_once else None
        record = self._blocks.record(shard, record_number, block, n_uses)
        return tfrecords.payload(*record)

    def _path(self, shard: ShardFile) -> str:
        return files.join(self._folder, shard.name)

    def _locate(self, index: int) -> tuple[int, int]:
        """The shard of a sample, and the number of the first sample in that shard."""
        shard = bisect.bisect_right(self._ends, index)
        return shard, self._ends[shard - 1] if shard else 0


def check_share(n_skipped: int, n_drawn: int, n_records: int, max_share: float) -> None:
    """Raises RecordError if too many of the records drawn were skipped.

    The first epoch of a set counts as drawn, up to `_N_BEFORE_SHARE` records: of a few
    records, a single one would be a large share.
    """
    n_drawn = max(n_drawn, min(n_records, _N_BEFORE_SHARE))
    if n_skipped > max_share * n_drawn:
        raise RecordError(
            f"{n_skipped} damaged records skipped, expected at most {max_share:g} of"
            f" {n_drawn} (run.max_skipped_share); python -m trainer.verify names all"
        )


def _read_whole_export(folder: str) -> dict:
    """Reads the manifest, and compares it with the files in the folder.

    An export may swap its manifest and remove old shards between the two; then the
    manifest is another one, and is read once more.
    """
    manifest = _read_manifest(folder)
    try:
        _check_sizes(folder, manifest["shards"])
    except ValueError:
        newer = _read_manifest(folder)
        if newer == manifest:
            raise
        _check_sizes(folder, newer["shards"])
        return newer
    return manifest


def _read_manifest(folder: str) -> dict:
    path = files.join(folder, _MANIFEST)
    try:
        manifest = json.loads(files.read(path))
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


def _check_sizes(folder: str, shards: Sequence[Mapping]) -> None:
    """Finds shards that are cut or missing from one listing: there may be 10,000."""
    sizes = {
        files.split(path)[1]: size for path, size in files.list_folder(folder).items()
    }
    for shard in shards:
        name, index = shard["name"], shard["name"] + INDEX_SUFFIX
        for needed in (name, index):
            if needed not in sizes:
                path = files.join(folder, needed)
                raise ValueError(f"{path}: missing, expected as the manifest names it")
        n, rest = divmod(sizes[index], INDEX_DTYPE.itemsize)
        if rest or n != shard["n_samples"]:
            expected = f"{n} records, expected {shard['n_samples']}"
            raise ValueError(f"{files.join(folder, index)}: {expected}")
        if sizes[name] != shard["n_bytes"]:
            expected = f"{sizes[name]} bytes, expected {shard['n_bytes']}"
            raise ValueError(f"{files.join(folder, name)}: {expected}")


def _local_record(folder: str, shard: ShardFile, number: int) -> tuple[bytes, int]:
    """A record with its checksums, and its payload's length according to the index."""
    size = _INDEX_ENTRY.size
    entry = _read(folder, shard.name + INDEX_SUFFIX, number * size, size)
    offset, length = _INDEX_ENTRY.unpack(entry)
    start, end = tfrecords.span(shard, offset, length)
    return _read(folder, shard.name, start, end - start), length


def _digest(folder: str, shard: ShardFile) -> str:
    """SHA-256 of a whole shard, in hexadecimal digits."""
    digest = hashlib.sha256()
    with files.open_stream(files.join(folder, shard.name)) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _is_contiguous(folder: str, shard: ShardFile) -> bool:
    """Whether the index has every record of a shard once, in order."""
    index = np.frombuffer(
        files.read(files.join(folder, shard.name + INDEX_SUFFIX)), INDEX_DTYPE
    )
    around = tfrecords.HEADER_BYTES + tfrecords.FOOTER_BYTES
    ends = np.cumsum(index["length"] + np.uint64(around))
    starts = np.append(np.uint64(0), ends)
    expected = starts[:-1] + np.uint64(tfrecords.HEADER_BYTES)
    return bool((index["offset"] == expected).all()) and starts[-1] == shard.n_bytes


def _read(folder: str, name: str, start: int, length: int) -> bytes:
    """Raises ValueError if the file ends earlier."""
    data = files.read_range(files.join(folder, name), start, length)
    if len(data) != length:
        raise ValueError(f"{len(data)} bytes at {start}, expected {length}")
    return data
