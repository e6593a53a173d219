"""Errors of files that say which file: writing to an open one leaves its name out."""

import contextlib
import os
from collections.abc import Iterator

# Of a file that is not there, or not for us: another attempt would find the same.
CANNOT_BE_OPENED = (FileNotFoundError, IsADirectoryError, PermissionError)


@contextlib.contextmanager
def add_path(path: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError of the block that names no file names this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise
