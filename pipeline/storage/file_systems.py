"""The file system of a path: the disks of this machine, or one that Beam knows.

Beam takes seconds to import, so that is done when a path names a scheme such as gs://.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import typing
import warnings
from collections.abc import Iterable

# Beam makes a regular expression of the pattern `[[]`.
warnings.filterwarnings("ignore", "Possible nested set", FutureWarning)

_SCHEME = re.compile(r"(?P<scheme>[a-zA-Z][-a-zA-Z0-9+.]*)://.*")


class FileFacts(typing.Protocol):
    """Facts that a listing has about one file."""

    @property
    def path(self) -> str: ...

    @property
    def size_in_bytes(self) -> int: ...

    @property
    def last_updated_in_seconds(self) -> float:
        """Unix time; 0 where the file system does not say."""


class FileSystem(typing.Protocol):
    """The calls that `files` makes; each raises OSError when it fails."""

    def join(self, folder: str, *names: str) -> str:
        """`folder/name/...`."""

    def split(self, path: str) -> tuple[str, str]:
        """The folder of a path and the name in it."""

    def match(self, pattern: str) -> list[FileFacts]:
        """Files that a pattern matches; `**` is any number of folders."""

    def list_below(self, folder: str, prefix: str) -> list[FileFacts]:
        """Files in a folder, which ends with a slash, and in its folders.

        Names that do not begin with `prefix` may be among them.
        """

    def metadata(self, path: str) -> FileFacts:
        """Facts about one file; an error if it is missing."""

    def exists(self, path: str) -> bool:
        """Whether a file or folder is there."""

    def checksum(self, path: str) -> str:
        """A text that differs when the contents do, as far as the system knows."""

    def open(self, path: str) -> typing.BinaryIO:
        """A seekable file to read from, not decompressed."""

    def create(self, path: str) -> typing.BinaryIO:
        """A new file to write to, not compressed."""

    def rename(self, source: str, destination: str) -> None:
        """Moves a file, over another one if it is there."""

    def make_folder(self, folder: str) -> None:
        """Makes a folder and its parents; an error if it is there."""

    def delete(self, paths: list[str]) -> None:
        """Deletes files, or folders with all that is in them."""


def scheme(path: str) -> str | None:
    """The scheme that a path begins with, such as "gs"; None for a local path."""
    found = _SCHEME.match(path)
    return found["scheme"] if found else None


def file_system_of(path: str) -> FileSystem:
    """The file system of a path.

    Raises:
      ValueError: if no file system of that scheme is installed.
    """
    return _LocalDisks() if scheme(path) is None else _BeamFileSystem(path)


def match(pattern: str) -> list[FileFacts]:
    """Files that a pattern of Beam matches, where `**` is any number of folders."""
    return _BeamFileSystem(pattern).match(pattern)


@dataclasses.dataclass(frozen=True)
class _LocalFile:
    path: str
    size_in_bytes: int
    last_updated_in_seconds: float


class _LocalDisks:
    """The disks of this machine, by the standard library."""

    def join(self, folder: str, *names: str) -> str:
        return os.path.join(folder, *names)

    def split(self, path: str) -> tuple[str, str]:
        return os.path.split(os.path.abspath(path))

    def match(self, pattern: str) -> list[FileFacts]:
        return match(pattern)

    def list_below(self, folder: str, prefix: str) -> list[FileFacts]:
        found = []
        for parent, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(OSError):  # removed meanwhile, or a dead link
                    found.append(self.metadata(os.path.join(parent, name)))
        return found

    def metadata(self, path: str) -> FileFacts:
        found = os.stat(path)
        return _LocalFile(path, found.st_size, found.st_mtime)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def checksum(self, path: str) -> str:
        return str(os.path.getsize(path))

    def open(self, path: str) -> typing.BinaryIO:
        return open(path, "rb")

    def create(self, path: str) -> typing.BinaryIO:
        return open(path, "wb")

    def rename(self, source: str, destination: str) -> None:
        os.rename(source, destination)

    def make_folder(self, folder: str) -> None:
        os.makedirs(folder)

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.remove(path)


class _BeamFileSystem:
    """The file system that Beam has for a scheme."""

    def __init__(self, path: str) -> None:
        from apache_beam.io.aws import s3io
        from apache_beam.io.filesystems import FileSystems

        # Beam says so itself for Cloud Storage; for S3 its error has many lines.
        if scheme(path) == "s3" and not s3io.BOTO3_INSTALLED:
            raise ValueError(f"{path}: expected the extra [aws] to be installed")
        self._beam = FileSystems.get_filesystem(path)

    def join(self, folder: str, *names: str) -> str:
        return self._beam.join(folder, *names)

    def split(self, path: str) -> tuple[str, str]:
        return self._beam.split(path)

    def match(self, pattern: str) -> list[FileFacts]:
        (found,) = self._beam.match([pattern])
        return found.metadata_list

    def list_below(self, folder: str, prefix: str) -> list[FileFacts]:
        start = folder if self._beam.has_dirs() else folder + prefix
        # The only listing of Beam that takes no pattern.
        return list(self._beam._list(start))

    def metadata(self, path: str) -> FileFacts:
        return self._beam.metadata(path)

    def exists(self, path: str) -> bool:
        return self._beam.exists(path)

    def checksum(self, path: str) -> str:
        return str(self._beam.checksum(path))

    def open(self, path: str) -> typing.BinaryIO:
        return self._beam.open(path, compression_type=_uncompressed())

    def create(self, path: str) -> typing.BinaryIO:
        return self._beam.create(path, compression_type=_uncompressed())

    def rename(self, source: str, destination: str) -> None:
        self._beam.rename([source], [destination])

    def make_folder(self, folder: str) -> None:
        self._beam.mkdirs(folder)

    def delete(self, paths: list[str]) -> None:
        """Beam deletes what matches a path: here each path matches only itself."""
        self._beam.match = _match_themselves
        self._beam.delete(paths)


def _uncompressed() -> str:
    from apache_beam.io.filesystem import CompressionTypes

    return CompressionTypes.UNCOMPRESSED


def _match_themselves(paths: Iterable[str], limits: object = None) -> list:
    from apache_beam.io.filesystem import FileMetadata, MatchResult

    return [MatchResult(path, [FileMetadata(path, 0)]) for path in paths]
