"""Files of this machine, by the standard library alone.

A written file is complete or absent: it is written under a temporary name and renamed.
Errors that may pass, such as those of a network file system, are retried.
"""

import contextlib
import glob
import os
import re
import shutil
import socket
import threading
import typing
from collections.abc import Iterator, Sequence

from pipeline.storage import wildcards
from pipeline.storage.file_errors import add_path
from pipeline.storage.file_facts import FileFacts
from pipeline.storage.retries import retry

# What `write` leaves behind when it is killed: the file, the host, process and thread.
TEMPORARY = re.compile(r"(?s)(?P<file_and_host>.+)-(?P<pid>\d+)-(?P<thread>\d+)\.tmp")


def temporary_path(path: str) -> str:
    """A name beside a file that no other writer uses."""
    writer = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    return f"{path}.{writer}.tmp"


_COPY_BYTES = 16 << 20


@retry
def facts(path: str) -> FileFacts:
    """Facts about a file; raises FileNotFoundError if it is missing, or a folder."""
    found = os.stat(path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path}: expected a file, found a folder")
    return FileFacts(path, found.st_size, found.st_mtime, repr(found.st_mtime))


def read(path: str) -> bytes:
    """All bytes of a file."""
    with open_for_reading(path) as file:
        return file.read()


@retry
def read_range(path: str, start: int, length: int) -> bytes:
    """Up to `length` bytes, fewer where the file ends."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, length, start)
    finally:
        os.close(descriptor)


def read_end(path: str, length: int) -> tuple[bytes, int]:
    """The last bytes of a file, up to `length`, and its size."""
    size = facts(path).n_bytes
    return read_range(path, max(0, size - length), length), size


@retry
def open_for_reading(path: str) -> typing.BinaryIO:
    """A file to read here and there."""
    return open(path, "rb")


open_stream = open_for_reading


@retry
def write(path: str, data: typing.Any) -> None:
    """Writes a buffer under a temporary name, which becomes `path` in one step."""
    with _renamed_to(path) as file:
        file.write(data)


def write_from(source: typing.BinaryIO, path: str) -> None:
    """Writes what is left to read of a file, as `write` does."""
    with _renamed_to(path) as file:
        shutil.copyfileobj(source, file, _COPY_BYTES)


@retry
def publish(local: str, path: str) -> None:
    """Copies a file, as `write` does."""
    with open(local, "rb") as source:
        write_from(source, path)


@contextlib.contextmanager
def _renamed_to(path: str) -> Iterator[typing.BinaryIO]:
    temporary = temporary_path(path)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with add_path(path), open(temporary, "wb") as file:
        yield file
    os.rename(temporary, path)


def create(path: str, data: bytes) -> bool:
    """Creates a file; False if it is there. Of many writers only one gets True."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    try:
        with add_path(path), open(path, "xb") as file:
            _write_or_remove(file, data)
    except FileExistsError:
        return False
    return True


def _write_or_remove(file: typing.BinaryIO, data: bytes) -> None:
    """A file that is left without its data would keep its place for ever."""
    try:
        file.write(data)
        file.flush()
    except OSError:  # such as of a full disk
        os.remove(file.name)
        raise


def delete(paths: Sequence[str]) -> None:
    """Deletes files, or folders with all that is in them."""
    for path in paths:
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.remove(path)


def list_below(
    folder: str, after: str = "", known: Sequence[str] = ()
) -> Iterator[FileFacts]:
    """All files in a folder and its folders, in no order."""
    del after, known  # there is no faster way to them
    folder = folder.rstrip("/") + "/"
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile, or a dead link
                yield facts(os.path.join(parent, name))


@retry
def list_folder(folder: str) -> tuple[list[str], list[FileFacts]]:
    """The names of the folders in a folder, and the files in it; none if missing."""
    names, found = [], []
    is_missing = contextlib.suppress(FileNotFoundError, NotADirectoryError)
    with is_missing, os.scandir(folder.rstrip("/") + "/") as entries:
        for entry in entries:
            if entry.is_dir():
                names.append(entry.name)
                continue
            with contextlib.suppress(OSError):
                found.append(facts(entry.path))
    return names, found


@retry
def match(pattern: str, known: Sequence[str] = ()) -> list[FileFacts]:
    """The files that a pattern matches."""
    del known  # there is no faster way to them
    if "**" in pattern:
        folder = wildcards.fixed_folder(pattern) or "."
        expression = wildcards.translate(pattern)
        prefix = "" if pattern.startswith("./") or folder != "." else "./"
        found = ((one.path.removeprefix(prefix), one) for one in list_below(folder))
        return [
            one._replace(path=path) for path, one in found if expression.fullmatch(path)
        ]
    pattern = f"{pattern}*" if pattern.endswith("/") else pattern
    paths = glob.glob(pattern, include_hidden=True)
    return [_facts_or_none(path) for path in paths if not os.path.isdir(path)]


def _facts_or_none(path: str) -> FileFacts:
    """A link that leads nowhere has no size: reading it says so."""
    try:
        return facts(path)
    except OSError:
        return FileFacts(path, 0, 0.0, "")
