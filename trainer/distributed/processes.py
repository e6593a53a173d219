"""Several processes, on one host or many, as one run.

Each process has its own devices and reads its own rows of every batch. The first one
writes what is written once.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import UInt8

from trainer.command_line import ADDRESS, COUNT, NUMBER

Row = TypeVar("Row")


def join() -> None:
    """Waits for the other processes. Call it before anything asks for devices.

    Raises ValueError if the environment does not say which processes there are.
    """
    count, number = _read_number(COUNT), _read_number(NUMBER)
    try:
        # The address JAX reads by itself.
        jax.distributed.initialize(num_processes=count, process_id=number)
    except ValueError as error:
        raise ValueError(
            f"--distributed: {str(error).rstrip('.')}; expected a TPU pod, Slurm, or"
            f" {ADDRESS}, {COUNT} and {NUMBER} in the environment"
        ) from error


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def own_rows(rows: Sequence[Row]) -> Sequence[Row]:
    """Returns this process's part of rows that all processes have: every n-th."""
    return rows[jax.process_index() :: jax.process_count()]


def join_rows(
    own: UInt8[np.ndarray, "own ..."], n_rows: int
) -> UInt8[np.ndarray, "n_rows ..."]:
    """Returns all rows in order on every process, from what each made of `own_rows`."""
    n = jax.process_count()
    most = -(-n_rows // n)
    padded = np.zeros((most, *own.shape[1:]), own.dtype)
    padded[: len(own)] = own
    parts = multihost_utils.process_allgather(padded)
    return np.swapaxes(parts, 0, 1).reshape(-1, *own.shape[1:])[:n_rows]


def is_everywhere(is_here: bool) -> bool:
    """Whether something holds on every process; all of them must ask."""
    return bool(multihost_utils.process_allgather(np.array(is_here)).all())


@contextlib.contextmanager
def redirect_library_output() -> Iterator[None]:
    """Sends what libraries below Python print to standard error.

    Gloo, which connects processes on CPUs, reports on standard output that it did.
    """
    sys.stdout.flush()
    output, errors = 1, 2  # file descriptors
    kept = os.dup(output)
    os.dup2(errors, output)
    try:
        yield
    finally:
        os.dup2(kept, output)
        os.close(kept)


def _read_number(variable: str) -> int | None:
    """None if the variable is not set."""
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdecimal():
        raise ValueError(f"{variable}={text}: expected a number, 0 or more")
    return int(text)
