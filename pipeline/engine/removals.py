"""What was taken out of a run, so that it stays out: RUN/removed.json.

In: lists of pairs, and shards and sources by name. Out: which pairs and shards of a run
are meant. Pairs are recorded as keyed hashes of what names them, in a table beside the
record, RUN/removed: so the record says how many were removed and when, and tells a pair
that comes again, but not what was removed. A removal that has begun and is not complete
is in the record too, with all that is needed to complete it.
"""

import dataclasses
import functools
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import pyarrow as pa

from pipeline.engine.listed_lots import counted, shown
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
    # How many it has; None in a record of an older version.
    n_hashes: int | None = dataclasses.field(default=None, compare=False)
    kinds: frozenset[str] = frozenset()  # of names of pairs in the table
    sources: frozenset[str] = frozenset()  # of the pool
    shards: frozenset[tuple[str, str]] = frozenset()  # names of sources, with a path
    done: tuple[Mapping[str, Any], ...] = ()  # when, what kinds, how many
    unfinished: Unfinished | None = None

    @classmethod
    def read(cls, root: str) -> Self:
        """The record of a run folder; empty if nothing was removed.

        Raises:
          ValueError: if it is damaged.
        """
        try:
            return cls._parse(json.loads(files.read(_path(root))))
        except FileNotFoundError:
            return cls()
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as e:
            raise ValueError(
                f"--output {root}: {NAME} is damaged: expected an object in JSON that"
                " says what was removed. Put a copy of it back, or curate into a new"
                " folder without what was removed: in this one, it would come back"
            ) from e

    @classmethod
    def _parse(cls, content: Mapping[str, Any]) -> Self:
        unfinished = content["unfinished"]
        return cls(
            key=content["key"],
            table=content["table"],
            n_hashes=content.get("n_hashes"),
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
            "n_hashes": self.n_hashes,
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

        table, n_hashes = _write_table(root, hashes())
        return dataclasses.replace(
            self, key=key, table=table, n_hashes=n_hashes, kinds=frozenset(kinds)
        )

    def restore_table(self, root: str, entries: Iterable[Entry]) -> None:
        """Writes a damaged table again, from all names of pairs that it had.

        Raises:
          ValueError: if they make another table.
        """
        empty = dataclasses.replace(self, table="", kinds=frozenset())
        if empty.with_entries(root, entries).table != self.table:
            raise ValueError(
                f"--pairs: expected all lists of before and no other, as"
                f" {self._table_path(root)} is damaged and only they make it again"
            )

    def open_names(self, root: str) -> "RemovedNames":
        """What names removed pairs, mapped into memory on this machine.

        Raises:
          ValueError: if the table is damaged; once a process, all of it is read.
        """
        if not self.table:
            return RemovedNames()
        path = self._table_path(root)
        self._expect_size(path)
        copy = files.local_copy(path)
        if _name_of_marked(copy, files.facts(copy).mark) != self.table:
            place = path if copy == path else f"{path}, copied to {copy}"
            raise _damaged(place, "but it holds something else than its name says")
        hashes = drop_tables.open_whole(copy)
        return RemovedNames(bytes.fromhex(self.key), self.kinds, hashes)

    def expect_table(self, root: str) -> None:
        """Raises ValueError if the table is gone, or not of its size.

        It is read only if the record is of a version that did not note the size.
        """
        if self.n_hashes is None:
            self.open_names(root)
        else:
            self._expect_size(self._table_path(root))

    def _expect_size(self, path: str) -> None:
        try:
            n_bytes = files.facts(path).n_bytes
        except FileNotFoundError as error:
            raise _damaged(path, "but it is not there") from error
        if self.n_hashes is not None and n_bytes != self.n_hashes * DIGEST_BYTES:
            n_expected = self.n_hashes * DIGEST_BYTES
            raise _damaged(path, f"but it has {n_bytes:,} bytes, not {n_expected:,}")

    def _table_path(self, root: str) -> str:
        return files.join(root, TABLES, self.table)

    @property
    def identity(self) -> str:
        """Identifies all that the record names."""
        found = (sorted(self.sources), sorted(self.shards), self.table)
        data = repr(found).encode(errors="surrogateescape")
        return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()

    def is_out(self, source_name: str, uri: str) -> bool:
        """Whether a shard of the pool was removed."""
        return source_name in self.sources or (source_name, uri) in self.shards

    def describe_left_out(
        self, name_to_uris: Mapping[str, Collection[str]]
    ) -> Iterator[str]:
        """Yields lines about sources and shards that are listed but were removed.

        Args:
          name_to_uris: listed shards of each source of the pool.
        """
        uris = {
            uri
            for name, uri in self.shards
            if name not in self.sources and uri in name_to_uris.get(name, ())
        }
        sources = self.sources & name_to_uris.keys()
        for noun, found in (("source", sources), ("shard", uris)):
            if found:
                are = ("was", "is") if len(found) == 1 else ("were", "are")
                yield (
                    f"{counted(len(found), f'listed {noun}')} {are[0]} removed before"
                    f" and {are[1]} left out: {shown(sorted(found))}"
                )

    def describe(self) -> str:
        """How much was removed in all, but not what; "" if nothing was."""
        if not self.done:
            return ""
        counts = ", ".join(
            counted(sum(one[f"{name}s"] for one in self.done), name)
            for name in ("pair", "shard", "source")
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

    def hashes_of(self, entries: Iterable[Entry]) -> np.ndarray:
        """The hashes of names of pairs, one for each."""
        hashes = b"".join(_keyed_hash(self.key, *entry) for entry in entries)
        return np.frombuffer(hashes, DIGEST_DTYPE)

    def matches(self, pairs: pa.Table) -> np.ndarray:
        """Which pairs were removed: bool [n].

        Args:
          pairs: columns `url`, `image_hash` and `sample_id` of `records.Pair`.
        """
        return self.find(pairs)[0]

    def find(self, pairs: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Which pairs were removed, bool [n], and the different hashes they have."""
        is_removed = np.zeros(pairs.num_rows, dtype=bool)
        matched = [np.empty(0, DIGEST_DTYPE)]
        for start in range(0, pairs.num_rows if self.kinds else 0, _PAIRS_AT_A_TIME):
            some = pairs.slice(start, _PAIRS_AT_A_TIME)
            rows, entries = [], []
            for kind, names in drop_lists.names_by_kind(some, self.kinds):
                for row, values in enumerate(names, start=start):
                    for value in values:
                        rows.append(row)
                        entries.append((kind, value))
            found = self.hashes_of(entries)
            is_listed = drop_tables.is_in(found, self.hashes)
            is_removed[np.array(rows, np.int64)[is_listed]] = True
            matched.append(np.unique(found[is_listed]))
        return is_removed, np.unique(np.concatenate(matched))


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


def _write_table(root: str, hashes: Iterable[np.ndarray]) -> tuple[str, int]:
    """Writes a sorted table; returns its name, and how many hashes it has."""
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, "hashes")
        drop_tables.write_sorted(hashes, local)
        name = _name_of_contents(local)
        files.publish(local, files.join(root, TABLES, name))
        return name, drop_tables.count_entries(local)


def _name_of_contents(local: str) -> str:
    with open(local, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{digest[: 2 * DIGEST_BYTES]}.bin"


@functools.lru_cache(maxsize=8)
def _name_of_marked(local: str, mark: str) -> str:
    """The same, of a file that is read once while its mark stays."""
    return _name_of_contents(local)


def _damaged(path: str, fault: str) -> ValueError:
    return ValueError(
        f"{path}: expected the table of removed pairs, {fault}; put a copy of it back,"
        " or give all lists of before again: `remove --pairs FILE`, once for each"
    )


def _keyed_hash(key: bytes, kind: str, value: str) -> bytes:
    data = f"{kind}:{value}".encode(errors="surrogatepass")
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES, key=key).digest()


def _path(root: str) -> str:
    return files.join(root, NAME)
