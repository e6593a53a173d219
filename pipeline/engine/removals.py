"""What was taken out of a run, so that it stays out: RUN/removed.json.

In: lists of pairs, and shards and sources by name. Out: which pairs and shards of a run
are meant. Pairs are recorded as keyed hashes of what names them: the record says how
many were removed and when, and tells a pair that comes again, but not what was removed.
A removal that has begun and is not complete is in the record too, with all that is
needed to complete it.
"""

import dataclasses
import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
import pyarrow as pa

from pipeline.sources import drop_lists
from pipeline.storage import files

NAME = "removed.json"

_DIGEST_BYTES = 16
_PAIRS_AT_A_TIME = 10_000

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
    n_pairs: int
    is_decided: bool  # whether the run had all its decisions
    flags: str  # the folder of the flags that it had
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
    kind_to_hashes: Mapping[str, frozenset[str]] = dataclasses.field(
        default_factory=dict
    )
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
            kind_to_hashes={
                kind: frozenset(hashes) for kind, hashes in content["hashes"].items()
            },
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
            "hashes": {k: sorted(v) for k, v in sorted(self.kind_to_hashes.items())},
        }
        files.write(_path(root), json.dumps(content, indent=1).encode() + b"\n")

    def with_entries(self, entries: Iterable[Entry]) -> Self:
        """The record with more names of pairs."""
        key = self.key or secrets.token_hex(_DIGEST_BYTES)
        kind_to_hashes = {kind: set(v) for kind, v in self.kind_to_hashes.items()}
        for kind, value in entries:
            hashes = kind_to_hashes.setdefault(kind, set())
            hashes.add(_keyed_hash(bytes.fromhex(key), kind, value))
        found = {kind: frozenset(hashes) for kind, hashes in kind_to_hashes.items()}
        return dataclasses.replace(self, key=key, kind_to_hashes=found)

    @property
    def identity(self) -> str:
        """Identifies all that the record names."""
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for hashes in (self.sources, *self.kind_to_hashes.values()):
            digest.update(repr(sorted(hashes)).encode())
        digest.update(repr(sorted(self.shards)).encode(errors="surrogateescape"))
        return digest.hexdigest()

    def is_out(self, source_name: str, uri: str) -> bool:
        """Whether a shard of the pool was removed."""
        return source_name in self.sources or (source_name, uri) in self.shards

    def matches(self, pairs: pa.Table) -> np.ndarray:
        """Which pairs were removed: bool [n].

        Args:
          pairs: columns `url`, `image_hash` and `sample_id` of `records.Pair`.
        """
        is_removed = np.zeros(pairs.num_rows, dtype=bool)
        kinds, key = list(self.kind_to_hashes), bytes.fromhex(self.key)
        if not kinds:
            return is_removed
        for start in range(0, pairs.num_rows, _PAIRS_AT_A_TIME):
            some = pairs.slice(start, _PAIRS_AT_A_TIME)
            for kind, names in drop_lists.names_by_kind(some, kinds):
                hashes = self.kind_to_hashes[kind]
                for row, values in enumerate(names, start=start):
                    found = (_keyed_hash(key, kind, value) for value in values)
                    is_removed[row] |= not hashes.isdisjoint(found)
        return is_removed


def expect_finished(root: str) -> None:
    """Raises ValueError while a removal is not complete."""
    if Removals.read(root).unfinished is not None:
        raise ValueError(
            f"--output {root}: expected no removal that is not complete; `remove"
            f" --output {root}` goes on with it"
        )


def _keyed_hash(key: bytes, kind: str, value: str) -> str:
    data = f"{kind}:{value}".encode(errors="surrogatepass")
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES, key=key).hexdigest()


def _path(root: str) -> str:
    return files.join(root, NAME)
