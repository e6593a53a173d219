"""obstore in this process, also in one that was forked after obstore was used.

obstore keeps threads that a fork does not copy, and its calls would wait for them for
ever. A forked process loads a second copy of the library, with threads of its own.
"""

import importlib
import os
import pathlib
import shutil
import sys
import tempfile
from types import ModuleType

_is_forked = False


def obstore() -> ModuleType:
    """The package, whose submodules `store` and `exceptions` are loaded."""
    global _is_forked
    if _is_forked:
        _load_copy()
        _is_forked = False
    library = importlib.import_module("obstore")
    importlib.import_module("obstore.store")
    return library


def _load_copy() -> None:
    """The system loads a shared library once per file, so this needs another file."""
    package = pathlib.Path(importlib.import_module("obstore").__file__ or "").parent
    for name in [name for name in sys.modules if name.split(".")[0] == "obstore"]:
        del sys.modules[name]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(package, pathlib.Path(folder) / "obstore")
        sys.path.insert(0, folder)
        try:
            importlib.import_module("obstore")
            importlib.import_module("obstore.store")
        finally:
            sys.path.remove(folder)


def _note_fork() -> None:
    global _is_forked
    _is_forked = "obstore" in sys.modules


os.register_at_fork(after_in_child=_note_fork)
