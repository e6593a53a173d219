"""Lists of what must not be used: the files that hold them, and what they match.

In: text files with one entry a line, on any file system that Beam knows: a URL, or
`host:NAME`, `image_hash:HEX` or `sample_id:HEX`, or the digits of a sample id alone.
Blank lines and lines that begin with `#` say nothing. Out: for the pairs of a lot the
kind of entry that names each of them.
The launcher reads the files and writes a sorted table of 16 bytes an entry, named by
what they hold. Workers map it into memory, or read parts of it if it is very large.
"""

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from pipeline.sources import drop_tables
from pipeline.sources.drop_tables import DIGEST_BYTES, DIGEST_DTYPE
from pipeline.storage import files, patterns
from pipeline.storage.json_files import read_json, write_json

# Kinds of entries, in the order in which they are tried.
KINDS = ("url", "host", "image_hash", "sample_id")

_URL = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#\s]*@)?"
    r"([^/?#\s:@\[]+|\[[^/?#\s@\]]*\])((?::\d*)?)((?:[/?][^#\s]*)?)(?:#\S*)?"
)
_OTHER = re.compile(r"(?P<kind>host|image_hash|sample_id):(?P<value>\S+)")
_HOST = re.compile(r"[^\s/:@?#*]+")
_HASH = re.compile(r"[0-9a-fA-F]{32}")
_MAX_SHOWN_CHARS = 80
_BYTES_AT_A_TIME = 1 << 20
_ENTRIES_AT_A_TIME = 1 << 22  # 64 MiB of digests
_PAIRS_AT_A_TIME = 10_000


@dataclasses.dataclass(frozen=True)
class ListFile:
    """One file of entries."""

    uri: str
    digest: str  # BLAKE2b-128 of its bytes, as hex
    mark: str  # of `files.mark`


@dataclasses.dataclass(frozen=True, eq=False)
class Names:
    """Digests of all that would name some pairs if an entry had it."""

    row: np.ndarray  # int64 [n], of the pair
    kind: np.ndarray  # int8 [n], position in KINDS
    digest: np.ndarray  # DIGEST_DTYPE [n]

    @classmethod
    def of(cls, pairs: pa.Table) -> "Names":
        """The names of pairs, at most 10,000 of them in Python's memory.

        Args:
          pairs: columns `url`, `image_hash` and `sample_id` of `records.Pair`.
        """
        found = [cls._of_some(pairs.slice(0, 0), 0)]
        for start in range(0, pairs.num_rows, _PAIRS_AT_A_TIME):
            some = pairs.slice(start, _PAIRS_AT_A_TIME)
            found.append(cls._of_some(some, start))
        columns = zip(*((f.row, f.kind, f.digest) for f in found), strict=True)
        return cls(*map(np.concatenate, columns))

    @classmethod
    def _of_some(cls, pairs: pa.Table, first: int) -> "Names":
        rows, kinds, digests = [], [], bytearray()
        for code, (kind, names) in enumerate(names_by_kind(pairs)):
            for row, values in enumerate(names, start=first):
                for value in values:
                    rows.append(row)
                    kinds.append(code)
                    digests += _digest(kind, value)
        digest = np.frombuffer(bytes(digests), DIGEST_DTYPE)
        return cls(np.array(rows, np.int64), np.array(kinds, np.int8), digest)

    def take(self, places: np.ndarray) -> "Names":
        """Some of the names: `places` are positions, or a mask."""
        return Names(self.row[places], self.kind[places], self.digest[places])


def first_kinds(listed: Names, n_pairs: int) -> np.ndarray:
    """The kind of the first name of each pair that is listed, or "": str [n]."""
    codes = np.full(n_pairs, len(KINDS))
    np.minimum.at(codes, listed.row, listed.kind)
    return np.array([*KINDS, ""], dtype=object)[codes]


class DropList:
    """All entries, 16 bytes each, mapped into memory."""

    def __init__(self, entries: np.ndarray) -> None:
        """`entries` are digests, ascending."""
        self._digests = entries

    @classmethod
    def open(cls, path: str) -> "DropList":
        """Maps a table on this machine into memory, shared by all its processes."""
        return cls(drop_tables.open_whole(path))

    def kinds_of(self, pairs: pa.Table) -> np.ndarray:
        """Kind of the first entry that names each pair, "" if none does: str `[n]`.

        Args:
          pairs: as `Names.of` takes them.
        """
        names = Names.of(pairs)
        is_listed = drop_tables.is_in(names.digest, self._digests)
        return first_kinds(names.take(is_listed), pairs.num_rows)


def list_files(pattern: str, root: str) -> tuple[ListFile, ...]:
    """The files of a drop list; none for "".

    A file is read, unless `build` has noted in the run folder what it holds.

    Raises:
      ValueError: if the glob matches nothing, or what cannot be read.
    """
    if not pattern:
        return ()
    try:
        uri_to_mark = patterns.find_marks(pattern, "files")
    except ValueError as error:
        raise ValueError(f"drop_list={error}") from error
    known = read_json(_notes_path(root)) or {}
    found = []
    for uri, mark in uri_to_mark.items():
        before, digest = known.get(uri, ("", ""))
        if before != mark or not mark:
            digest = _contents_digest(uri)
        found.append(ListFile(uri, digest, mark))
    return tuple(found)


def build(list_files: Sequence[ListFile], root: str) -> str:
    """The path of the table of the files in a run folder.

    Makes it if it is not there as a whole. Holds four million entries in memory at a
    time.

    Raises:
      ValueError: on a line that is no entry; names file and line.
    """
    path = table_path(list_files, root)
    if not _is_whole(path):
        drop_tables.write_sorted(_digests(list_files), path)
        write_json(f"{path}.json", {"n_bytes": files.facts(path).n_bytes})
        notes = {found.uri: (found.mark, found.digest) for found in list_files}
        write_json(_notes_path(root), notes)
    return path


def _is_whole(path: str) -> bool:
    """Whether a table has the size that it was written with."""
    noted = read_json(f"{path}.json")
    try:
        return noted == {"n_bytes": files.facts(path).n_bytes}
    except FileNotFoundError:
        return False


def _notes_path(root: str) -> str:
    return files.join(root, "drop_lists", "contents.json")


def _digests(list_files: Iterable[ListFile]) -> Iterator[np.ndarray]:
    """Yields the digests of all entries, in blocks."""
    digests = bytearray()
    for list_file in list_files:
        for kind, value in read_entries(list_file.uri):
            digests += _digest(kind, value)
            if len(digests) >= _ENTRIES_AT_A_TIME * DIGEST_BYTES:
                yield np.frombuffer(bytes(digests), DIGEST_DTYPE)
                digests.clear()
    yield np.frombuffer(bytes(digests), DIGEST_DTYPE)


def table_path(list_files: Iterable[ListFile], root: str) -> str:
    """Where the table of the files lies, or will."""
    contents = "".join(contents_digests(list_files)).encode()
    name = hashlib.blake2b(contents, digest_size=DIGEST_BYTES).hexdigest()
    return files.join(root, "drop_lists", f"{name}.bin")


def contents_digests(list_files: Iterable[ListFile]) -> list[str]:
    """Digests of what the files hold, sorted; their names do not matter."""
    return sorted(list_file.digest for list_file in list_files)


def _contents_digest(uri: str) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    try:
        with files.open_stream(uri) as file:
            while data := file.read(_BYTES_AT_A_TIME):
                digest.update(data)
    except (IsADirectoryError, PermissionError) as error:
        raise ValueError(f"drop_list: expected files to read: {error}") from error
    return digest.hexdigest()


def read_entries(uri: str) -> Iterator[tuple[str, str]]:
    """Yields kind and value of each line, in the form in which they are compared."""
    for number, line in enumerate(_read_lines(uri), start=1):
        try:
            text = line.decode("utf-8-sig").strip()
            if text and not text.startswith("#"):
                yield _parse(text)
        except ValueError as error:
            shown = repr(line[:_MAX_SHOWN_CHARS].decode(errors="replace"))
            raise ValueError(
                f"{uri}:{number}: {shown}: expected a URL, host:NAME, image_hash:HEX"
                " or sample_id:HEX of 32 digits, or those of a sample id alone"
            ) from error


def _read_lines(uri: str) -> Iterator[bytes]:
    with files.open_stream(uri) as file:
        for line in file:
            yield from line.splitlines()


def _parse(text: str) -> tuple[str, str]:
    """Raises ValueError on what is no entry."""
    address, _ = _normalize_address(text)
    if address:
        return "url", address
    if _HASH.fullmatch(text):
        return "sample_id", text.lower()
    match = _OTHER.fullmatch(text)
    if match is None:
        raise ValueError(text)
    kind, value = match["kind"], match["value"]
    if not (_HOST if kind == "host" else _HASH).fullmatch(value):
        raise ValueError(text)
    return kind, value.lower().strip(".")


def names_by_kind(
    pairs: pa.Table, kinds: Collection[str] = KINDS
) -> Iterator[tuple[str, list[Sequence[str]]]]:
    """Yields kinds, in the order of KINDS, with the values that would name each pair.

    Args:
      pairs: as `Names.of` takes them.
    """
    if {"url", "host"} & set(kinds):
        addresses = [_clean_address(url) for url in pairs["url"].to_pylist()]
        if "url" in kinds:
            yield "url", [(address,) if address else () for address, _ in addresses]
        if "host" in kinds:
            yield "host", [_with_parents(host) for _, host in addresses]
    for kind in ("image_hash", "sample_id"):
        if kind in kinds:
            yield kind, [(value.hex(),) for value in pairs[kind].to_pylist()]


def _clean_address(url: str) -> tuple[str, str]:
    """Normalizes an address of a crawl, which may have white space or no scheme."""
    url = re.sub(r"\s", "%20", url.strip())
    address = _normalize_address(url)
    return address if address[0] else _normalize_address("http://" + url.lstrip("/"))


def _normalize_address(url: str) -> tuple[str, str]:
    """A URL in the form in which it is compared, and its host; "" if it is none.

    Scheme, fragment, user and the case of the host do not count: a list that says
    `http:` means the image at `https:` as well.
    """
    match = _URL.fullmatch(url.strip())
    if match is None:
        return "", ""
    host, port, rest = match.groups()
    host = host.lower().rstrip(".")
    return host + port + (rest or "/"), host


def _with_parents(host: str) -> tuple[str, ...]:
    """`a.b.org` gives itself, `b.org` and `org`: an entry covers all its subdomains."""
    labels = host.split(".")
    return tuple(".".join(labels[i:]) for i in range(len(labels))) if host else ()


def _digest(kind: str, value: str) -> bytes:
    data = f"{kind}:{value}".encode()
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
