"""Listings of object stores that are kept while nobody else writes to what they list.

A command that has locked a run folder asks many times which tables of ten thousand lots
are there, and each answer takes seconds. Between jobs only the command itself writes,
and what it writes or removes is forgotten here.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

from pipeline.storage.file_facts import FileFacts

Listing = tuple[str, bool]  # a folder, and whether with all folders in it

_lock = threading.Lock()
_kept: dict[Listing, list[FileFacts]] | None = None  # None while none is kept
_n_changes = 0  # what was listed before one is not kept after it


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keeps listings within the block, beginning with none."""
    with _replaced({}):
        yield


@contextlib.contextmanager
def not_kept() -> Iterator[None]:
    """Keeps none within the block, in which others write, and none from before."""
    with _replaced(None):
        yield


@contextlib.contextmanager
def _replaced(content: dict[Listing, list[FileFacts]] | None) -> Iterator[None]:
    before = _replace(content)
    try:
        yield
    finally:
        _replace(None if before is None else {})


def _replace(
    content: dict[Listing, list[FileFacts]] | None,
) -> dict[Listing, list[FileFacts]] | None:
    global _kept, _n_changes
    with _lock:
        before, _kept = _kept, content
        _n_changes += 1
    return before


def find(
    folder: str, is_deep: bool, list_files: Callable[[], Iterator[FileFacts]]
) -> Iterator[FileFacts]:
    """The files right in a folder, or all below it, listed unless they are known."""
    folder = folder.rstrip("/")
    known, n_changes = _kept, _n_changes
    if known is None:
        return list_files()
    found = known.get((folder, is_deep))
    if found is None and (below := known.get((folder, True))) is not None:
        found = [one for one in below if one.path.rfind("/") == len(folder)]
    if found is None:
        found = list(list_files())
        with _lock:
            if n_changes == _n_changes:
                known[folder, is_deep] = found
    return iter(found)


@contextlib.contextmanager
def changed(url: str) -> Iterator[None]:
    """Forgets the listings of folders that hold a file that the block changes."""
    global _n_changes
    try:
        yield
    finally:
        known = _kept
        if known is not None:
            with _lock:
                _n_changes += 1
                for listing in [one for one in known if url.startswith(f"{one[0]}/")]:
                    del known[listing]
