"""Files on file systems that Beam knows and obstore does not, such as `hdfs://`.

A written file is complete or absent: it is written under a temporary name and renamed.
Beam sets no time limit and repeats nothing, so that is done here.
"""

import mmap
import typing
import warnings
from collections.abc import Iterable, Iterator, Sequence

from pipeline.storage import timeouts
from pipeline.storage.file_facts import FileFacts
from pipeline.storage.local_disks import temporary_path
from pipeline.storage.retries import retry
from pipeline.storage.timeouts import call_with_timeout

# Beam makes a regular expression of the pattern `[[]`.
warnings.filterwarnings("ignore", "Possible nested set", FutureWarning)


def expect_known(path: str) -> None:
    """Raises ValueError if Beam knows no file system for a path.

    One that it knows but that is not installed, or not there, is an OSError.
    """
    try:
        _exists(path)
    except ValueError:
        raise ValueError(
            f"{path}: expected a path of this machine, s3://, gs://, az:// or a scheme"
            " that Beam knows, such as hdfs://"
        ) from None


def _system(path: str) -> typing.Any:
    from apache_beam.io.filesystems import FileSystems

    return FileSystems.get_filesystem(path)


def _uncompressed() -> str:
    from apache_beam.io.filesystem import CompressionTypes

    return CompressionTypes.UNCOMPRESSED


def _facts(found: typing.Any) -> FileFacts:
    updated_s = found.last_updated_in_seconds or 0.0
    return FileFacts(found.path, found.size_in_bytes, updated_s, repr(int(updated_s)))


@retry
def facts(path: str) -> FileFacts:
    """Facts about a file; raises FileNotFoundError if it is missing."""
    if not _exists(path):
        raise FileNotFoundError(f"{path}: no such file")
    return _facts(call_with_timeout(path, lambda: _system(path).metadata(path)))


def _exists(path: str) -> bool:
    return call_with_timeout(path, lambda: _system(path).exists(path))


def read(path: str) -> bytes:
    """All bytes of a file."""
    with open_for_reading(path) as file:
        return file.read()


def read_range(path: str, start: int, length: int) -> bytes:
    """Up to `length` bytes, fewer where the file ends."""
    with open_for_reading(path) as file:
        file.seek(start)
        return file.read(length)


def read_end(path: str, length: int) -> tuple[bytes, int]:
    """The last bytes of a file, up to `length`, and its size."""
    size = facts(path).n_bytes
    return read_range(path, max(0, size - length), length), size


@retry
def open_for_reading(path: str) -> typing.BinaryIO:
    """A file to read here and there; compressed files are not unpacked."""
    kind = _uncompressed()
    file = call_with_timeout(
        path, lambda: _system(path).open(path, compression_type=kind)
    )
    return timeouts.reader(path, file)


open_stream = open_for_reading


@retry
def write(path: str, data: typing.Any) -> None:
    """Writes a buffer under a temporary name, which becomes `path` in one step."""
    temporary = temporary_path(path)
    _make_folder(path.rpartition("/")[0])
    kind = _uncompressed()
    file = call_with_timeout(
        path, lambda: _system(path).create(temporary, compression_type=kind)
    )
    try:
        timeouts.write(path, file, data)
    finally:
        call_with_timeout(path, file.close)
    call_with_timeout(path, lambda: _system(path).rename([temporary], [path]))


def _make_folder(folder: str) -> None:
    try:
        call_with_timeout(folder, lambda: _system(folder).mkdirs(folder))
    except OSError:  # it is there, or another writer was first
        if not _exists(folder):
            raise


def publish(local: str, path: str) -> None:
    """Writes a file of this machine; it is mapped, and never in memory as a whole."""
    with (
        open(local, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        write(path, data)


def create(path: str, data: bytes) -> bool:
    """Always False: Beam does not know which of many writers was first."""
    del path, data
    return False


def delete(paths: Sequence[str]) -> None:
    """Deletes files, or folders with all that is in them.

    Beam deletes what matches a path: here each path matches only itself.
    """
    system = _system(paths[0])
    system.match = _match_themselves
    names = [path.rstrip("/") for path in paths]
    call_with_timeout(", ".join(names[:3]), lambda: system.delete(names))


def _match_themselves(paths: Iterable[str], limits: object = None) -> list:
    from apache_beam.io.filesystem import FileMetadata, MatchResult

    return [MatchResult(path, [FileMetadata(path, 0)]) for path in paths]


@retry
def _list(folder: str) -> list[FileFacts]:
    place = folder.rstrip("/") + "/"
    # The only listing of Beam that takes no pattern.
    found = call_with_timeout(folder, lambda: list(_system(place)._list(place)))
    return [_facts(one) for one in found]


def list_below(
    folder: str, after: str = "", known: Sequence[str] = ()
) -> Iterator[FileFacts]:
    """All files in a folder and its folders, in no order."""
    del after, known  # there is no faster way to them
    return iter(_list(folder))


def list_folder(folder: str) -> tuple[list[str], list[FileFacts]]:
    """The names of the folders in a folder that hold files, and the files in it."""
    prefix = len(folder.rstrip("/")) + 1
    names, found = set(), []
    for one in _list(folder):
        name, slash, _ = one.path[prefix:].partition("/")
        if slash:
            names.add(name)
        else:
            found.append(one)
    return sorted(names), found


@retry
def match(pattern: str, known: Sequence[str] = ()) -> list[FileFacts]:
    """The files that a pattern of Beam matches."""
    del known  # there is no faster way to them
    (found,) = call_with_timeout(pattern, lambda: _system(pattern).match([pattern]))
    return [_facts(one) for one in found.metadata_list]
