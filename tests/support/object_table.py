"""The objects of a store in memory, with what stores say about each."""

import bisect
import dataclasses
import hashlib
import time
from collections.abc import Iterator, MutableMapping, Sequence

Key = tuple[str, str]  # the bucket, and the key in it


@dataclasses.dataclass(frozen=True)
class Entry:
    """An object: its generation grows with every write to the store."""

    data: bytes
    etag: str
    generation: int
    updated_s: float


class ObjectTable(MutableMapping[Key, bytes]):
    """Key to bytes; not safe for threads by itself."""

    def __init__(self) -> None:
        self._entries: dict[Key, Entry] = {}
        self._sorted: list[Key] | None = []
        self._generation = 1_700_000_000_000_000  # as Google's, which are times

    def entry(self, key: Key) -> Entry | None:
        """The object, None if there is none."""
        return self._entries.get(key)

    def put(self, key: Key, data: bytes, etag: str | None = None) -> Entry:
        """Writes an object; without `etag` it is the MD5 of the data."""
        self._generation += 1
        etag = etag or hashlib.md5(data).hexdigest()
        if key not in self._entries:
            self._sorted = None
        entry = Entry(data, f'"{etag}"', self._generation, time.time())
        self._entries[key] = entry
        return entry

    def __getitem__(self, key: Key) -> bytes:
        return self._entries[key].data

    def __setitem__(self, key: Key, data: bytes) -> None:
        self.put(key, data)

    def __delitem__(self, key: Key) -> None:
        del self._entries[key]
        self._sorted = None

    def __iter__(self) -> Iterator[Key]:
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def names(
        self, bucket: str, prefix: str, delimiter: str, after: str, skipped: str
    ) -> Iterator[str]:
        """Keys in order; of those with a delimiter, the part that ends with it, once.

        Args:
          after: only keys behind this one.
          skipped: a part that was given before; keys that begin with it are left out.
        """
        if self._sorted is None:
            self._sorted = sorted(self._entries)
        asked = Asked(bucket, prefix, delimiter, after, skipped)
        return names_among(self._sorted, asked)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a listing asks for: see `ObjectTable.names`."""

    bucket: str
    prefix: str
    delimiter: str
    after: str
    skipped: str


def names_among(keys: Sequence[Key], asked: Asked) -> Iterator[str]:
    """The names of sorted keys that a listing asks for."""
    bucket, prefix = asked.bucket, asked.prefix
    position = bisect.bisect_left(keys, (bucket, prefix))
    if asked.after:
        position = max(position, bisect.bisect_right(keys, (bucket, asked.after)))
    if asked.skipped:
        position = max(position, _end_of(keys, bucket, asked.skipped))
    while position < len(keys):
        found_in, key = keys[position]
        if found_in != bucket or not key.startswith(prefix):
            return
        end = key.find(asked.delimiter, len(prefix)) if asked.delimiter else -1
        if end < 0:
            yield key
            position += 1
        else:
            part = key[: end + len(asked.delimiter)]
            yield part
            position = _end_of(keys, bucket, part)


def _end_of(keys: Sequence[Key], bucket: str, prefix: str) -> int:
    """The position behind the keys that begin so."""
    return bisect.bisect_left(keys, (bucket, prefix + "\U0010ffff"))
