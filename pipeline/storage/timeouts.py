"""Calls of file systems that end, also where the file system does not.

Beam sets no bound on most of them, and a call that hangs would hold a run for ever. It
runs in a thread of its own, which is left behind when its time is over: nothing else
can be done about a call that does not return.
"""

import io
import threading
import typing
from collections.abc import Callable
from concurrent import futures

from pipeline.storage.file_errors import add_path
from pipeline.storage.retries import retry

if typing.TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Result = typing.TypeVar("Result")
P = typing.ParamSpec("P")

TIMEOUT_S = 600.0  # of one call: far more than to list a million files takes
_READ_BYTES = 128 << 10  # at least; a call of this size costs little beside its bytes
_WRITE_BYTES = 16 << 20  # at most


def call_with_timeout(
    what: str, function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
) -> Result:
    """The result of a call.

    Raises:
      TimeoutError: if there is none after `TIMEOUT_S`; names `what`.
    """
    outcome: futures.Future[Result] = futures.Future()

    def call() -> None:
        try:
            with add_path(what):
                outcome.set_result(function(*args, **kwargs))
        except BaseException as error:  # handed to the caller, which raises it
            outcome.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    futures.wait([outcome], TIMEOUT_S)
    if not outcome.done():
        raise TimeoutError(f"{what}: expected an answer within {TIMEOUT_S:g} s")
    return outcome.result()


def reader(path: str, file: typing.BinaryIO) -> typing.BinaryIO:
    """A buffered file whose reads end, and are tried again."""
    return io.BufferedReader(_Reader(path, file), _READ_BYTES)


def write(path: str, file: typing.BinaryIO, data: bytes) -> None:
    """Writes piece by piece, so that the bound holds for any amount of data."""
    with memoryview(data) as view:
        for start in range(0, len(view), _WRITE_BYTES):
            # A copy: a call that hangs must not keep what may be a mapped file.
            call_with_timeout(
                path, file.write, bytes(view[start : start + _WRITE_BYTES])
            )


class _Reader(io.RawIOBase):
    """Seeking costs no call: the file systems of Beam only note the position."""

    def __init__(self, path: str, file: typing.BinaryIO) -> None:
        self._path = path
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        data = self._read_at(self._file.tell(), len(view))
        view[: len(data)] = data
        return len(data)

    @retry
    def _read_at(self, position: int, n_bytes: int) -> bytes:
        """A read that fails may have moved the position, and lost what it had."""
        self._file.seek(position)
        return call_with_timeout(self._path, self._file.read, n_bytes)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            retry(call_with_timeout)(self._path, self._file.close)
        super().close()
