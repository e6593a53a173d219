"""Files on any file system that Beam knows: listing, reading, atomic writes.

A path names one file or folder. Only `find`, `sizes` and `marks` take patterns, and
only those that a user gave.

A written file is complete or absent: it is written under a temporary name and renamed;
an object store shows an object once all of it is there. Calls that fail with a passing
error are retried (see `retries`); a file system that does not answer is a TimeoutError.
"""

import glob
import hashlib
import mmap
import os
import re
import socket
import tempfile
import threading
import typing
from collections.abc import Iterable

from pipeline.storage import file_systems
from pipeline.storage.file_errors import add_path
from pipeline.storage.file_systems import FileFacts, file_system_of, scheme
from pipeline.storage.retries import retry
from pipeline.storage.timeouts import call_with_timeout, reader
from pipeline.storage.timeouts import write as write_within

if typing.TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

# What `write` leaves behind when it is killed: the file, the host, process and thread.
TEMPORARY = re.compile(r"(?s)(?P<file_and_host>.+)-(?P<pid>\d+)-(?P<thread>\d+)\.tmp")

_OBJECT_STORES = ("gs", "s3")
_MAX_PART_BYTES = 4 << 20  # Beam cuts at 5 MiB for S3, at 16 MiB for Cloud Storage


def use_options(options: "PipelineOptions") -> None:
    """Passes the flags of file systems, such as an endpoint, on to this process.

    Workers get them from Beam.
    """
    from apache_beam.io.filesystems import FileSystems

    FileSystems.set_options(options)


def find(pattern: str) -> tuple[str, ...]:
    """Paths of the files that match a pattern, sorted; none is an empty tuple.

    `?`, `*` and `[...]` as in a shell, `**` for any number of folders; `glob.escape`
    makes a pattern of a path.
    """
    if is_remote(pattern) or "**" in pattern:
        return tuple(sorted(sizes(pattern)))
    # Beam itself skips links to folders, and finds nothing in the working directory.
    pattern = f"{pattern}*" if pattern.endswith("/") else pattern
    found = glob.glob(pattern, include_hidden=True)
    return tuple(sorted(path for path in found if not os.path.isdir(path)))


@retry
def sizes(pattern: str) -> dict[str, int]:
    """Path to bytes of the files that match a pattern.

    Raises:
      ValueError: if an extra is missing that the file system needs.
    """
    if not is_remote(pattern) and "**" not in pattern:
        return {path: _n_bytes(path) for path in find(pattern)}
    matches = call_with_timeout(pattern, file_systems.match, pattern)
    return {found.path: found.size_in_bytes for found in matches}


def list_folder(folder: str, *, prefix: str = "", suffix: str = "") -> dict[str, int]:
    """Path to bytes of the files in a folder that are named so.

    {} if the folder is not there.
    """
    return {
        found.path: found.size_in_bytes
        for name, found in list_below(folder, prefix).items()
        if "/" not in name and name.endswith(suffix)
    }


@retry
def list_below(folder: str, prefix: str = "") -> dict[str, FileFacts]:
    """Name, such as `a/b`, to facts of all files in a folder and its folders."""
    place = _with_slash(folder)
    found = call_with_timeout(
        folder, lambda: file_system_of(place).list_below(place, prefix)
    )
    name_to_found = {one.path[len(place) :]: one for one in found}
    return {name: f for name, f in name_to_found.items() if name.startswith(prefix)}


@retry
def marks(pattern: str) -> dict[str, str]:
    """Path to `mark` of the files that match a pattern, of a store from one listing."""
    if not is_remote(pattern) and "**" not in pattern:
        return {path: mark(path) for path in find(pattern)}
    matches = call_with_timeout(pattern, file_systems.match, pattern)
    return {found.path: _mark(found) for found in matches}


@retry
def mark(path: str) -> str:
    """A version mark of a file, its size and when it changed; differs if they do.

    "" if there is no such file.
    """
    if not is_file(path):
        return ""
    return _mark(_metadata(path))


def _metadata(path: str) -> FileFacts:
    return call_with_timeout(path, lambda: file_system_of(path).metadata(path))


def _exists(path: str) -> bool:
    return call_with_timeout(path, lambda: file_system_of(path).exists(path))


def _mark(found: FileFacts) -> str:
    """S3 gives a time to the second for one object, and more finely in a listing."""
    changed_s = found.last_updated_in_seconds or 0.0
    if is_remote(found.path):
        changed_s = int(changed_s)
    return f"{found.size_in_bytes} bytes of {changed_s!r}"


def _with_slash(folder: str) -> str:
    """A prefix for listings: `a/` is not a prefix of `ab/c`."""
    return folder.rstrip("/") + "/"


def folders(parent: str) -> frozenset[str]:
    """Names of the folders that hold a file; on object stores no others are there."""
    parts = (name.split("/") for name in list_below(parent))
    return frozenset(names[0] for names in parts if len(names) == 2)


def split(path: str) -> tuple[str, str]:
    """The folder of a path and the name in it."""
    return file_system_of(path).split(path)


def join(folder: str, *names: str) -> str:
    """`folder/name/...` on any file system."""
    return file_system_of(folder).join(folder, *names)


@retry
def is_file(path: str) -> bool:
    """Whether a file is there."""
    return _exists(path) and not os.path.isdir(path)


@retry
def updated_s(path: str) -> float:
    """Unix time of the last change; 0 where the file system gives none."""
    return _metadata(path).last_updated_in_seconds or 0.0


@retry
def checksum(path: str) -> str:
    """A text that differs when the contents do, as far as the file system knows."""
    return call_with_timeout(path, lambda: file_system_of(path).checksum(path))


@retry
def open_for_reading(path: str) -> typing.BinaryIO:
    """A seekable binary file; compressed files are not unpacked.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    file = call_with_timeout(path, lambda: file_system_of(path).open(path))
    return reader(path, file)


def read(path: str) -> bytes:
    """The whole file."""
    with open_for_reading(path) as file:
        return file.read()


def local_copy(path: str) -> str:
    """Returns the path of a copy on this machine, or `path` itself if it is local.

    A remote file is copied once. The name of the copy is a digest of path and checksum:
    the same path may later hold other data.
    """
    if not is_remote(path):
        return path
    identity = f"{path}\0{checksum(path)}".encode()
    digest = hashlib.blake2b(identity, digest_size=8).hexdigest()
    copy = os.path.join(tempfile.gettempdir(), f"{digest}-{split(path)[1]}")
    if not os.path.exists(copy):
        write(copy, read(path))
    return copy


@retry
def write(path: str, data: bytes) -> None:
    """Writes a file so that readers see all of it or nothing.

    The temporary name is the writer's own: two writers of the same file do not meet,
    and both write the same bytes. In an object store, where to rename is to copy and to
    delete, a small file needs no temporary name: it comes as a whole, in one part.
    """
    if _is_in_object_store(path) and len(data) <= _MAX_PART_BYTES:
        _write_in_place(path, data)
        return
    writer = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    temporary = f"{path}.{writer}.tmp"
    _make_folder(split(path)[0])
    _write_in_place(temporary, data)
    call_with_timeout(path, lambda: file_system_of(path).rename(temporary, path))


def publish(local: str, path: str) -> tuple[int, str]:
    """Copies a file of this machine to any file system; gives its size and SHA-256.

    It is mapped rather than read: a shard may be larger than a worker's memory.
    """
    with (
        open(local, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        write(path, typing.cast(bytes, data))  # which only has to be a buffer
        return len(data), hashlib.sha256(data).hexdigest()


def create(path: str, data: bytes) -> bool:
    """Creates a file; False if it is there.

    Of many writers only one gets True. Always False on object stores, where Beam does
    not know who was first.
    """
    if is_remote(path):
        return False
    _make_folder(split(path)[0])
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


def delete(folder: str, names: Iterable[str]) -> None:
    """Removes files of a folder, or of folders in it: `a/b` is a name, `../a` is none.

    Raises:
      ValueError: if a name leads out of the folder.
    """
    _delete([join(folder, _expect_inside(folder, name)) for name in names])


def delete_folder(parent: str, name: str) -> None:
    """Removes a folder with all that is in it.

    Raises:
      ValueError: if the name leads out of its parent.
    """
    path = join(parent, _expect_inside(parent, name))
    # A slash means a folder to object stores; on a disk the folder would stay.
    _delete([path + "/" if is_remote(path) else path])


def _expect_inside(folder: str, name: str) -> str:
    if {"", ".", ".."} & set(name.split("/")):
        raise ValueError(f"{name!r}: expected the name of a file inside {folder}")
    return name


def _delete(paths: list[str]) -> None:
    if paths:
        names = ", ".join(paths[:3])
        call_with_timeout(names, lambda: file_system_of(paths[0]).delete(paths))


def _write_in_place(path: str, data: bytes) -> None:
    file = call_with_timeout(path, lambda: file_system_of(path).create(path))
    try:
        write_within(path, file, data)
    finally:
        call_with_timeout(path, file.close)


def is_remote(path: str) -> bool:
    """Whether a path names its file system."""
    return scheme(path) is not None


def _n_bytes(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # a link that leads nowhere: reading it says so
        return 0


def _is_in_object_store(path: str) -> bool:
    return scheme(path) in _OBJECT_STORES


def _make_folder(folder: str) -> None:
    try:
        call_with_timeout(folder, lambda: file_system_of(folder).make_folder(folder))
    except OSError:  # it is there, or another writer was first
        if not _exists(folder):
            raise
