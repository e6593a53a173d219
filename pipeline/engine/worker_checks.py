"""Checks that a worker has the code and the model of the launcher.

A worker on another machine may hold older code, lack a checkpoint or hold another one.
It says so in one line when it starts, or before it loads the model, rather than write
what no other worker would.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import socket
from typing import Self

from pipeline.models.checkpoints import resolve_checkpoint, weights_digest

_PACKAGES = ("pipeline", "recipes")


class WorkerError(ValueError):
    """Why a worker cannot take part; the message names its host."""


@dataclasses.dataclass(frozen=True)
class WorkerChecks:
    """The identity of code and model; made by the launcher, checked by the others."""

    launcher: tuple[str, int]
    code: str
    checkpoint: str  # folder or Hugging Face id; "" for a model without weights
    revision: str
    digest: str
    is_folder: bool

    @classmethod
    def of(cls, checkpoint: str, digest: str, revision: str = "") -> Self:
        is_folder = pathlib.Path(checkpoint).expanduser().is_dir()
        code = code_digest()
        return cls(this_process(), code, checkpoint, revision, digest, is_folder)

    def at_start(self) -> None:
        """Checks code and folder, in `setup`; downloads nothing.

        Raises:
          WorkerError: on other code than the launcher's, or a folder that is not there.
        """
        if this_process() == self.launcher:
            return
        if code_digest() != self.code:
            raise _error(
                f"code={code_digest()!r}: expected the launcher's {self.code!r}; build"
                " the container again or start with --setup_file"
            )
        if self.checkpoint and self.is_folder:
            try:
                resolve_checkpoint(self.checkpoint)
            except ValueError as error:
                raise _error(str(error)) from error

    def before_load(self) -> None:
        """Checks the checkpoint, before the model is loaded.

        Raises:
          WorkerError: on a checkpoint that cannot be read or is not the launcher's.
        """
        if this_process() == self.launcher or not self.checkpoint:
            return
        try:
            found = _digest_of(self.checkpoint, self.revision)
        except ValueError as error:
            raise _error(str(error)) from error
        if found != self.digest:
            raise _error(
                f"checkpoint={self.checkpoint!r}: expected the launcher's with digest"
                f" {self.digest!r}, found {found!r}"
            )


@functools.cache
def code_digest() -> str:
    """The digest of all modules that a worker may run, those of this installation."""
    return digest_code(pathlib.Path(__file__).parents[2])


def digest_code(root: pathlib.Path) -> str:
    """The digest of all modules of the packages `pipeline` and `recipes` in a folder.

    Names and contents enter it, 12 hexadecimal digits come out.
    """
    paths = [path for package in _PACKAGES for path in (root / package).rglob("*.py")]
    total = hashlib.blake2b(digest_size=6)
    for path in sorted(paths):
        total.update(f"{path.relative_to(root).as_posix()}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def this_process() -> tuple[str, int]:
    """Host and number of the process."""
    return socket.gethostname(), os.getpid()


@functools.cache
def _digest_of(checkpoint: str, revision: str) -> str:
    return weights_digest(resolve_checkpoint(checkpoint, revision))


def _error(message: str) -> WorkerError:
    return WorkerError(f"worker {socket.gethostname()}: {message}")
