"""Files of captions that were made elsewhere: which they are, and their texts.

In: Parquet or JSON lines files on any file system that Beam knows. A row names an image
by one column (image_hash, sample_id or url) and has one text or a list of texts. Out:
one `ImportedText` per text, in the order of the file, and an `UnreadableRow` for each
row with an error. An error in a file ends it with one `UnreadableRow` for the rest.
"""

import dataclasses
import gzip
import hashlib
import os
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.config.captions import Granularity
from pipeline.sources import imported_rows
from pipeline.sources.imported_rows import Columns, ImportedText, UnreadableRow
from pipeline.sources.parquet import open_parquet
from pipeline.storage import files, patterns
from pipeline.storage.prefetch import map_ahead

_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
_N_FILES_AHEAD = 64


@dataclasses.dataclass(frozen=True)
class ImportedFile:
    """One file; `name` is its path within the folder that all files lie in."""

    uri: str
    name: str
    n_bytes: int
    digest: str  # BLAKE2b-128 of its bytes, as hex


def list_files(granularity: Granularity) -> tuple[ImportedFile, ...]:
    """The files of a granularity, ordered by their contents, so names do not matter.

    Raises:
      ValueError: if its glob matches nothing, or a file of another kind.
    """
    try:
        uris = patterns.find(granularity.checkpoint, "files of captions")
    except ValueError as error:
        raise _error(granularity, str(error)) from error
    for uri in uris:
        if not uri.endswith(_SUFFIXES):
            expected = ", ".join(_SUFFIXES)
            raise _error(
                granularity, f"expected {expected} files only, but it matches {uri}"
            )
    common = os.path.commonprefix(uris)  # noqa: RUF071 - commonpath spoils gs://
    n_common = common.rfind("/") + 1
    try:
        contents = list(map_ahead(_size_and_digest, uris, _N_FILES_AHEAD))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise _error(granularity, f"expected files to read: {error}") from error
    found = [
        ImportedFile(uri, uri[n_common:], *content)
        for uri, content in zip(uris, contents, strict=True)
    ]
    return tuple(sorted(found, key=lambda file: (file.digest, file.name)))


def contents_digest(imported: Sequence[ImportedFile]) -> str:
    """BLAKE2b-128 of what the files hold, as hex; their names do not matter."""
    lines = "\n".join(sorted(file.digest for file in imported))
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


def describe(imported: Sequence[ImportedFile]) -> list[dict[str, Any]]:
    """Name, size and digest of each file, by name."""
    return [
        {"name": file.name, "n_bytes": file.n_bytes, "digest": file.digest}
        for file in sorted(imported, key=lambda file: (file.name, file.digest))
    ]


def check(granularity: Granularity) -> None:
    """Raises ValueError unless all files name images and texts, by the same column."""
    uris = files.find(granularity.checkpoint)
    try:
        columns = list(map_ahead(find_columns, uris, _N_FILES_AHEAD))
    except ValueError as error:
        raise _error(granularity, str(error)) from error
    key_to_uri = {
        found.key_name: uri
        for uri, found in zip(uris, columns, strict=True)
        if found is not None
    }
    if not key_to_uri:
        raise _error(granularity, "expected rows with captions in its files")
    if len(key_to_uri) > 1:
        found = " and ".join(f"{name} in {uri}" for name, uri in key_to_uri.items())
        raise _error(granularity, f"expected one column in all files, found {found}")


def key_name(imported: Sequence[ImportedFile]) -> str:
    """The field of a pair by which the files name images; `check` has passed."""
    found = (find_columns(file.uri) for file in imported)
    return next(columns.key_name for columns in found if columns is not None)


def find_columns(uri: str) -> Columns | None:
    """The columns of a file; None if it has no rows.

    Raises:
      ValueError: if it cannot be read, or lacks a column, or has two of a kind.
    """
    with files.open_for_reading(uri) as file:
        try:
            if uri.endswith(".parquet"):
                with open_parquet(file) as parquet:
                    return imported_rows.parquet_columns(parquet.schema_arrow)
            return imported_rows.json_columns(_unpack(file, uri))
        except ValueError as error:
            raise ValueError(f"{uri}: {error}") from error


def read(uri: str) -> Iterator[ImportedText | UnreadableRow]:
    """Reads all texts of a file whose columns have been checked."""
    columns = find_columns(uri)
    with files.open_for_reading(uri) as file:
        if uri.endswith(".parquet"):
            rows = imported_rows.parquet_rows(file)
        else:
            rows = imported_rows.json_rows(_unpack(file, uri))
        for number, row in rows:
            if isinstance(row, ValueError):
                yield UnreadableRow(number, str(row))
            elif columns is not None:
                yield from imported_rows.parse_row(number, row, columns)


def _size_and_digest(uri: str) -> tuple[int, str]:
    digest, n_bytes = hashlib.blake2b(digest_size=16), 0
    with files.open_stream(uri) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            n_bytes += len(piece)
    return n_bytes, digest.hexdigest()


def _error(granularity: Granularity, problem: str) -> ValueError:
    return ValueError(
        f"checkpoint={granularity.checkpoint!r} of granularity "
        f"{granularity.name!r}: {problem}"
    )


def _unpack(file: typing.BinaryIO, uri: str) -> typing.BinaryIO:
    if uri.endswith(".gz"):
        return typing.cast(typing.BinaryIO, gzip.GzipFile(fileobj=file))
    return file
