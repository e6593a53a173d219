"""Files on any file system: listing, reading, atomic writes.

A path names one file or folder. Only `find`, `sizes` and `marks` take patterns, and
only those that a user gave. Local paths are plain files; `s3://`, `gs://` and `az://`
are read by obstore, every other scheme by Beam.

A written file is complete or absent. Calls whose errors may pass are repeated; a file
system that does not answer is an OSError.
"""

import hashlib
import os
import tempfile
import typing
from collections.abc import Iterable, Iterator, Sequence

from pipeline.storage import beam_files, local_disks, recent_tables, store_flags
from pipeline.storage.file_facts import FileFacts
from pipeline.storage.object_urls import is_object_url, scheme_of
from pipeline.storage.prefetch import map_ahead

if typing.TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

Version = dict[str, str]  # of an object, as its store names it

_N_READ_AT_ONCE = 64  # of `read_many`


class _FileSystem(typing.Protocol):
    """The functions that the modules of the three file systems share."""

    def facts(self, path: str, /) -> FileFacts: ...
    def read_range(self, path: str, start: int, length: int, /) -> typing.Any: ...
    def read_end(self, path: str, length: int, /) -> tuple[typing.Any, int]: ...
    def open_for_reading(self, path: str, /) -> typing.BinaryIO: ...
    def open_stream(self, path: str, /) -> typing.BinaryIO: ...
    def read(self, path: str, /) -> typing.Any: ...
    def write(self, path: str, data: typing.Any, /) -> None: ...
    def publish(self, local: str, path: str, /) -> None: ...
    def create(self, path: str, data: bytes, /) -> bool: ...
    def delete(self, paths: Sequence[str], /) -> None: ...
    def list_folder(self, folder: str, /) -> tuple[list[str], list[FileFacts]]: ...
    def list_below(
        self, folder: str, after: str = ..., known: Sequence[str] = ..., /
    ) -> Iterator[FileFacts]: ...
    def match(
        self, pattern: str, known: Sequence[str] = ..., /
    ) -> Iterable[FileFacts]: ...


def _system(path: str) -> _FileSystem:
    if not is_remote(path):
        return local_disks
    if is_object_url(path):
        from pipeline.storage import object_store  # local runs do without obstore

        return object_store
    return beam_files


def is_remote(path: str) -> bool:
    """Whether a path names its file system, as `s3://...` does."""
    return scheme_of(path) is not None


def use_options(options: "PipelineOptions") -> None:
    """Passes the flags of stores, such as an endpoint, on to this process.

    Workers get them from Beam.
    """
    store_flags.use(options)
    from pipeline.storage import object_clients

    object_clients.forget_clients()


def find(pattern: str) -> tuple[str, ...]:
    """Paths of the files that a pattern matches, sorted; none is an empty tuple.

    `?`, `*` and `[...]` as in a shell, `**` for any number of folders; `glob.escape`
    makes a pattern of a path.
    """
    return tuple(sorted(sizes(pattern)))


def sizes(pattern: str) -> dict[str, int]:
    """Path to bytes of the files that a pattern matches."""
    return {found.path: found.n_bytes for found in _system(pattern).match(pattern)}


def marks(pattern: str, known: Sequence[str] = ()) -> dict[str, str]:
    """Path to `mark` of the files that a pattern matches.

    Args:
      known: sorted paths of an earlier listing. On object stores they make this one
        faster; what is found does not depend on them.
    """
    return {found.path: found.mark for found in _system(pattern).match(pattern, known)}


def mark(path: str) -> str:
    """A text that differs when the contents of a file do; "" if there is no file.

    Of a local file it is its size and when it changed, of an object its entity tag.
    """
    try:
        return facts(path).mark
    except (FileNotFoundError, IsADirectoryError):
        return ""


def facts(path: str) -> FileFacts:
    """Size, time and version of a file; raises FileNotFoundError if it is missing."""
    return _system(path).facts(path)


def list_folder(
    folder: str, *, prefix: str = "", suffix: str = "", known: Sequence[str] = ()
) -> dict[str, int]:
    """Path to bytes of the files in a folder that are named so.

    {} if the folder is not there. `known` are sorted paths, as of `marks`.
    """
    place = _with_slash(folder)
    return {
        place + name: one.n_bytes
        for name, one in facts_in(folder, prefix=prefix, known=known).items()
        if name.endswith(suffix)
    }


def facts_in(
    folder: str, *, prefix: str = "", known: Sequence[str] = ()
) -> dict[str, FileFacts]:
    """Name to facts of the files in a folder; arguments are those of `list_folder`."""
    if is_object_url(folder):
        found = _list_objects(folder.rstrip("/"), prefix, known)
    else:
        found = iter(_system(folder).list_folder(folder)[1])
    name_to_facts = {one.path.rpartition("/")[2]: one for one in found}
    if not prefix:
        return name_to_facts
    return {n: one for n, one in name_to_facts.items() if n.startswith(prefix)}


def _list_objects(
    folder: str, prefix: str, known: Sequence[str]
) -> Iterator[FileFacts]:
    """The objects of a folder; of millions only those whose names begin so."""
    from pipeline.storage import object_store

    if not prefix:
        yield from object_store.list_objects(folder, known)
        return
    for found in object_store.list_below(folder, prefix[:-1]):
        name = found.path[len(folder) + 1 :]
        if name > prefix and not name.startswith(prefix):
            return
        if "/" not in name:
            yield found


def list_below(folder: str, known: Sequence[str] = ()) -> dict[str, FileFacts]:
    """Name, such as `a/b`, to facts of all files in a folder and its folders.

    `known` are sorted paths, as of `marks`.
    """
    place = _with_slash(folder)
    found = _system(folder).list_below(folder, "", known)
    return {one.path[len(place) :]: one for one in found}


def _with_slash(folder: str) -> str:
    """A prefix for listings: `a/` is not a prefix of `ab/c`."""
    return folder.rstrip("/") + "/"


def folders(parent: str) -> frozenset[str]:
    """Names of the folders that hold a file; on object stores no others are there."""
    names, _ = _system(parent).list_folder(parent)
    if is_remote(parent):
        return frozenset(names)
    return frozenset(name for name in names if list_folder(join(parent, name)))


def split(path: str) -> tuple[str, str]:
    """The folder of a path and the name in it."""
    if is_remote(path):
        folder, _, name = path.rpartition("/")
        return folder, name
    return os.path.split(os.path.abspath(path))


def join(folder: str, *names: str) -> str:
    """`folder/name/...` on any file system."""
    if is_remote(folder):
        return "/".join((folder.rstrip("/"), *names))
    return os.path.join(folder, *names)


def is_file(path: str) -> bool:
    """Whether a file is there."""
    if not is_remote(path):
        return os.path.exists(path) and not os.path.isdir(path)
    try:
        facts(path)
    except (FileNotFoundError, IsADirectoryError):
        return False
    return True


def open_for_reading(path: str) -> typing.BinaryIO:
    """A seekable binary file to read here and there, such as Parquet.

    Compressed files are not unpacked.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    return _system(path).open_for_reading(path)


def open_stream(path: str) -> typing.BinaryIO:
    """A seekable binary file to read from its start to its end, such as a tar.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    return _system(path).open_stream(path)


def read(path: str) -> bytes:
    """The whole file; raises FileNotFoundError if it is missing."""
    return bytes(_system(path).read(path))


def read_many(paths: Sequence[str]) -> Iterator[bytes | OSError]:
    """Whole small files in the order of their paths, or the errors of reading them.

    Of a remote file system 64 are read at the same time, and no more are held.
    """
    if not any(map(is_remote, paths)):
        return map(_read_or_error, paths)
    n_at_once = _N_READ_AT_ONCE
    return map_ahead(_read_or_error, paths, n_at_once, n_threads=n_at_once)


def _read_or_error(path: str) -> bytes | OSError:
    try:
        return read(path)
    except OSError as error:
        return error


def read_range(path: str, start: int, length: int) -> bytes:
    """Up to `length` bytes, fewer where the file ends; one request to a store."""
    return bytes(_system(path).read_range(path, start, length))


def read_end(path: str, length: int) -> tuple[bytes, int]:
    """The last bytes of a file, up to `length`, and the size of the whole file."""
    data, size = _system(path).read_end(path, length)
    return bytes(data), size


def local_copy(path: str) -> str:
    """Returns the path of a copy on this machine, or `path` itself if it is local.

    A remote file is copied once. The name of the copy is a digest of path and mark:
    the same path may later hold other data.
    """
    if not is_remote(path):
        return path
    identity = f"{path}\0{facts(path).mark}".encode()
    digest = hashlib.blake2b(identity, digest_size=8).hexdigest()
    copy = os.path.join(tempfile.gettempdir(), f"{digest}-{split(path)[1]}")
    if not os.path.exists(copy):
        with open_stream(path) as file:
            local_disks.write_from(file, copy)
    return copy


def write(path: str, data: bytes) -> None:
    """Writes a file so that readers see all of it or nothing."""
    _system(path).write(path, data)


def publish(local: str, path: str) -> tuple[int, str]:
    """Copies a file of this machine to any file system; gives its size and SHA-256.

    It is never in memory as a whole: a shard may be larger than a worker's memory.
    """
    with open(local, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _system(path).publish(local, path)
    return os.path.getsize(local), digest


def create(path: str, data: bytes) -> bool:
    """Creates a file; False if it is there.

    Of many writers only one gets True. Always False where only Beam knows the file
    system, which cannot say who was first.
    """
    return _system(path).create(path, data)


def read_with_version(path: str) -> tuple[bytes, Version | None]:
    """The whole file, and what `replace` needs to know of it; None is nothing."""
    if is_object_url(path):
        from pipeline.storage import object_store

        return object_store.read_with_version(path)
    return read(path), None


def replace(path: str, data: bytes, version: Version | None) -> bool:
    """Writes a file; False if it is not the version any more that was read.

    Without a version it is written over whatever is there.
    """
    if version is not None:
        from pipeline.storage import object_store

        return object_store.replace(path, data, version)
    write(path, data)
    return True


def abort_uploads(folder: str) -> int:
    """Ends uploads to an object store that killed writers left; returns their number.

    Raises:
      OSError: if the store does not allow it.
    """
    from pipeline.storage import open_uploads

    return open_uploads.abort(folder)


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
        recent_tables.forget()
        _system(paths[0]).delete(paths)
