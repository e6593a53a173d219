"""Where an export lies: a folder of this machine, or one of an object store.

    folder = open_folder("gs://bucket/run/tfrecords")
    folder.read("train-00000-of-00001.tfrecord", start=12, length=500)

Whatever has `://` in it is read through fsspec; each `read` is one request there.
"""

import errno
import os

import fsspec

# Schemes whose packages are extras of this project.
_SCHEME_TO_PACKAGE = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}


class LocalFolder:
    """Files are opened for each read, which leaves nothing to close or to share."""

    def __init__(self, folder: str):
        self._folder = folder

    def path(self, name: str) -> str:
        """The path of a file of the folder."""
        return os.path.join(self._folder, name)

    def sizes(self) -> dict[str, int]:
        """File name to bytes."""
        with os.scandir(self._folder) as entries:
            return {e.name: e.stat().st_size for e in entries if e.is_file()}

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Up to `length` bytes, or all. Raises OSError."""
        descriptor = os.open(f"{self._folder}/{name}", os.O_RDONLY)
        try:
            if length is None:
                length = os.fstat(descriptor).st_size - start
            return os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)


class RemoteFolder:
    """A folder that fsspec reads."""

    def __init__(self, url: str):
        """Raises ValueError when the package that reads such a URL is missing."""
        self._url = url.rstrip("/")
        self._files, self._root = _file_system(self._url)

    def path(self, name: str) -> str:
        """The URL of a file of the folder."""
        return f"{self._url}/{name}"

    def sizes(self) -> dict[str, int]:
        """File name to bytes, from one listing."""
        entries = self._files.ls(self._root, detail=True)
        files = (entry for entry in entries if entry["type"] == "file")
        return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in files}

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Up to `length` bytes, or all, with one request. Raises OSError."""
        end = None if length is None else start + length
        try:
            return self._files.cat_file(f"{self._root}/{name}", start=start, end=end)
        except FileNotFoundError as error:
            code = errno.ENOENT
            raise FileNotFoundError(code, os.strerror(code), self.path(name)) from error


Folder = LocalFolder | RemoteFolder


def open_folder(folder: str) -> Folder:
    """Opens `FOLDER` or `SCHEME://FOLDER`; whether it exists is seen when it is read.

    Raises ValueError when nothing reads that scheme.
    """
    return RemoteFolder(folder) if "://" in folder else LocalFolder(folder)


def _file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL, and the path in there."""
    scheme = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _SCHEME_TO_PACKAGE.get(scheme)
        remedy = f"expected {package}: pip install {package}" if package else error
        raise ValueError(f"{url}: {remedy}") from error
    except ValueError as error:
        raise ValueError(f"{url}: {error}") from error
