"""Folders that are complete or not there: made beside their place, then renamed."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from pipeline.storage.file_errors import add_path
from recipes import interrupts


def check(output: pathlib.Path) -> None:
    """Raises ValueError when something is there already."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"--output={output}: exists, expected a new folder")


@contextlib.contextmanager
def create(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill, which is `output` after the block, unless that fails."""
    output.parent.mkdir(parents=True, exist_ok=True)
    made_in = tempfile.TemporaryDirectory(
        prefix=f".{output.name}.", dir=output.parent, ignore_cleanup_errors=True
    )
    with add_path(output), made_in as temporary, interrupts.tidied(made_in.cleanup):
        folder = pathlib.Path(temporary) / output.name
        folder.mkdir()
        yield folder
        os.replace(folder, output)
