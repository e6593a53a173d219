"""`faulty://PATH`: local files behind calls that fail or hang as a test wants."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, ClassVar

from apache_beam.io.filesystem import CompressionTypes, FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem

SCHEME = "faulty"
PREFIX = f"{SCHEME}://"


def local(path: str) -> str:
    return path.removeprefix(PREFIX)


class FaultyFileSystem(LocalFileSystem):
    """Calls `before` with the name and the path of every call, also of open files."""

    before: ClassVar[Callable[[str, str], None]] = staticmethod(lambda call, path: None)

    @classmethod
    def scheme(cls) -> str:
        return SCHEME

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join((basepath.rstrip("/"), *paths))

    def split(self, path: str) -> tuple[str, str]:
        head, _, tail = path.rpartition("/")
        return head, tail

    def mkdirs(self, path: str) -> None:
        self.before("mkdirs", path)
        super().mkdirs(local(path))

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        self.before("list", dir_or_prefix)
        for found in super()._list(local(dir_or_prefix)):
            yield _remote(found)

    def create(
        self,
        path: str,
        mime_type: str = "application/octet-stream",
        compression_type: str = CompressionTypes.AUTO,
    ) -> "FaultyFile":
        self.before("create", path)
        return FaultyFile(path, open(local(path), "wb"))

    def open(
        self,
        path: str,
        mime_type: str = "application/octet-stream",
        compression_type: str = CompressionTypes.AUTO,
    ) -> "FaultyFile":
        self.before("open", path)
        return FaultyFile(path, open(local(path), "rb"))

    def rename(self, source_file_names: list, destination_file_names: list) -> None:
        self.before("rename", source_file_names[0])
        super().rename(
            list(map(local, source_file_names)),
            list(map(local, destination_file_names)),
        )

    def exists(self, path: str) -> bool:
        self.before("exists", path)
        return os.path.exists(local(path))

    def checksum(self, path: str) -> str:
        self.before("checksum", path)
        return super().checksum(local(path))

    def metadata(self, path: str) -> FileMetadata:
        self.before("metadata", path)
        return _remote(super().metadata(local(path)))

    def delete(self, paths: list) -> None:
        self.before("delete", paths[0])
        super().delete(list(map(local, paths)))


class FaultyFile:
    """An open file; what it does not do itself, the local file does."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self._path = path
        self._file = file

    def read(self, n_bytes: int = -1) -> bytes:
        FaultyFileSystem.before("read", self._path)
        return self._file.read(n_bytes)

    def write(self, data: bytes) -> int:
        FaultyFileSystem.before("write", self._path)
        return self._file.write(data)

    def close(self) -> None:
        if not self._file.closed:
            self._file.close()
            FaultyFileSystem.before("close", self._path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _remote(found: FileMetadata) -> FileMetadata:
    size, updated_s = found.size_in_bytes, found.last_updated_in_seconds
    return FileMetadata(PREFIX + local(found.path), size, updated_s)


class FailNowAndThen:
    """Fails a share of all calls; counts both."""

    def __init__(self, share: float, rng_seed: int) -> None:
        self._share = share
        self._rng = random.Random(rng_seed)
        self.n_calls = self.n_failures = 0

    def __call__(self, call: str, path: str) -> None:
        self.n_calls += 1
        if self._rng.random() < self._share:
            self.n_failures += 1
            raise OSError(5, "Input/output error", path)


class Hang:
    """The call of this number and kind never returns; the others do."""

    def __init__(self, call: str, number: int) -> None:
        self._call = call
        self._n_left = number

    def __call__(self, call: str, path: str) -> None:
        if call == self._call:
            self._n_left -= 1
            if self._n_left == 0:
                threading.Event().wait()
