"""Several processes, on one host or many, as one run.

Each process has its own devices and reads its own rows of every batch. The first one
writes what is written once.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

import jax

from trainer.command_line import ADDRESS, COUNT, NUMBER


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
