"""What was taken out of a run, so that it stays out: RUN/removed.json.

In: lists of pairs, and shards and sources by name. Out: which pairs and shards of a run
are meant. Pairs are recorded as keyed hashes of what names them, in a table beside the
record, RUN/removed: so the record says how many were removed and when, and tells a pair
that comes again, but not what was removed. A removal that has begun and is not complete
is in the record too, with all that is needed to complete it.
"""

import dataclasses
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import pyarrow as pa

from pipeline.sources import drop_lists, drop_tables
from pipeline.sources.drop_tables import DIGEST_BYTES, DIGEST_DTYPE
from pipeline.storage import files

NAME = "removed.json"
TABLES = "removed"  # folder of the table of hashes

_PAIRS_AT_A_TIME = 10_000
_HASHES_AT_A_TIME = 1 << 20  # 16 MiB

Entry = tuple[str, str]  # kind and value of what names pairs, as drop lists have them


@dataclasses.dataclass(frozen=True)
class Succession:
    """A lot, and the one that has its rows but those that were removed."""

    old: str
    new: str  # "" if no shard is left, or the lot is one of a sample
    dropped: tuple[int, ...] = ()  # numbers of its shards that were removed


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A removal that has begun: what is left to do follows from it."""

    removal: str  # identifies it
    successions: tuple[Succession, ...]
    is_decided: bool  # whether the run had all its decisions
    is_flagged: bool  # and all flags of its captions
    with_sets: bool  # whether evaluation or seed images are removed
    summary: Mapping[str, Any]  # the line of the record

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Self:
        successions = tuple(
            Succession(old, new, tuple(dropped))
            for old, new, dropped in content["successions"]
        )
        return cls(**{**content, "successions": successions})

    def to_json(self) -> dict[str, Any]:
        found = [(s.old, s.new, list(s.dropped)) for s in self.successions]
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields} | {"successions": found}


@dataclasses.dataclass(frozen=True)
class Removals:
    """The record of a run folder."""

    key: str = ""  # of the hashes, as hex
    table: str = ""  # of the hashes: its file's name
    kinds: frozenset[str] = frozenset()  # of names of pairs in the table
    sources: frozenset[str] = frozenset()  # of the pool
    shards: frozenset[tuple[str, str]] = frozenset()  # names of sources, with a path
    done: tuple[Mapping[str, Any], ...] = ()  # when, what kinds, how many
    unfinished: Unfinished | None = None

    @classmethod
    def read(cls, root: str) -> Self:
        """The record of a run folder; empty if nothing was removed."""
        try:
            content = json.loads(files.read(_path(root)))
        except FileNotFoundError:
            return cls()
        unfinished = content["unfinished"]
        return cls(
            key=content["key"],
            table=content["table"],
            kinds=frozenset(content["kinds"]),
            sources=frozenset(content["sources"]),
            shards=frozenset(map(tuple, content["shards"])),
            done=tuple(content["done"]),
            unfinished=Unfinished.parse(unfinished) if unfinished else None,
        )

    def write(self, root: str) -> None:
        """Writes the record as a whole."""
        content = {
            "done": list(self.done),
            "unfinished": self.unfinished and self.unfinished.to_json(),
            "sources": sorted(self.sources),
            "shards": sorted(self.shards),
            "key": self.key,
            "table": self.table,
            "kinds": sorted(self.kinds),
        }
        files.write(_path(root), json.dumps(content, indent=1).encode() + b"\n")

    def with_entries(self, root: str, entries: Iterable[Entry]) -> Self:
        """The record with more names of pairs; writes the table of their hashes."""
        key, kinds = self.key or secrets.token_hex(DIGEST_BYTES), set(self.kinds)
        known = self.open_names(root).hashes

        def hashes() -> Iterator[np.ndarray]:
            for start in range(0, len(known), _HASHES_AT_A_TIME):
                yield known[start : start + _HASHES_AT_A_TIME]
            block = bytearray()
            for kind, value in entries:
                kinds.add(kind)
                block += _keyed_hash(bytes.fromhex(key), kind, value)
                if len(block) >= _HASHES_AT_A_TIME * DIGEST_BYTES:
                    yield np.frombuffer(bytes(block), DIGEST_DTYPE)
                    block.clear()
            yield np.frombuffer(bytes(block), DIGEST_DTYPE)

        table = _write_table(root, hashes())
        return dataclasses.replace(self, key=key, table=table, kinds=frozenset(kinds))

    def open_names(self, root: str) -> "RemovedNames":
        """What names removed pairs, mapped into memory on this machine."""
        if not self.table:
            return RemovedNames()
        path = files.local_copy(files.join(root, TABLES, self.table))
        hashes = drop_tables.open_whole(path)
        return RemovedNames(bytes.fromhex(self.key), self.kinds, hashes)

    @property
    def identity(self) -> str:
        """Identifies all that the record names."""
        found = (sorted(self.sources), sorted(self.shards), self.table)
        data = repr(found).encode(errors="surrogateescape")
        return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()

    def is_out(self, source_name: str, uri: str) -> bool:
        """Whether a shard of the pool was removed."""
        return source_name in self.sources or (source_name, uri) in self.shards

    def describe(self) -> str:
        """How much was removed in all, but not what; "" if nothing was."""
        if not self.done:
            return ""
        counts = ", ".join(
            f"{sum(one[kind] for one in self.done):,} {kind}"
            for kind in ("pairs", "shards", "sources")
        )
        return f"{counts}; the last on {self.done[-1]['date']}"


@dataclasses.dataclass(frozen=True, eq=False)
class RemovedNames:
    """Keyed hashes of all that names removed pairs, 16 bytes each."""

    key: bytes = b""
    kinds: frozenset[str] = frozenset()
    hashes: np.ndarray = dataclasses.field(
        default_factory=lambda: np.empty(0, DIGEST_DTYPE)
    )

    def matches(self, pairs: pa.Table) -> np.ndarray:
        """Which pairs were removed: bool [n].

        Args:
          pairs: columns `url`, `image_hash` and `sample_id` of `records.Pair`.
        """
        is_removed = np.zeros(pairs.num_rows, dtype=bool)
        if not self.kinds:
            return is_removed
        for start in range(0, pairs.num_rows, _PAIRS_AT_A_TIME):
            some = pairs.slice(start, _PAIRS_AT_A_TIME)
            rows, hashes = [], bytearray()
            for kind, names in drop_lists.names_by_kind(some, self.kinds):
                for row, values in enumerate(names, start=start):
                    for value in values:
                        rows.append(row)
                        hashes += _keyed_hash(self.key, kind, value)
            found = np.frombuffer(bytes(hashes), DIGEST_DTYPE)
            is_listed = drop_tables.is_in(found, self.hashes)
            is_removed[np.array(rows, np.int64)[is_listed]] = True
        return is_removed


def expect_finished(root: str) -> None:
    """Raises ValueError while a removal is not complete."""
    if Removals.read(root).unfinished is not None:
        raise ValueError(
            f"--output {root}: expected no removal that is not complete; `remove"
            f" --output {root}` goes on with it"
        )


def delete_other_tables(root: str) -> None:
    """Deletes tables of hashes that the record does not name."""
    folder, table = files.join(root, TABLES), Removals.read(root).table
    found = {files.split(path)[1] for path in files.list_folder(folder)}
    files.delete(folder, sorted(found - {table}))


def _write_table(root: str, hashes: Iterable[np.ndarray]) -> str:
    """Writes a sorted table, and returns its name, a digest of what it holds."""
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, "hashes")
        drop_tables.write_sorted(hashes, local)
        with open(local, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = f"{digest[: 2 * DIGEST_BYTES]}.bin"
        path = files.join(root, TABLES, name)
        if not files.is_file(path):
            files.publish(local, path)
    return name


def _keyed_hash(key: bytes, kind: str, value: str) -> bytes:
    data = f"{kind}:{value}".encode(errors="surrogatepass")
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES, key=key).digest()


def _path(root: str) -> str:
    return files.join(root, NAME)
