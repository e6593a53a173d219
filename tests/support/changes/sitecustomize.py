"""Writes down the files that a program names or removes, and kills it before one.

Python imports this module by itself in every process that finds it on its path. A line
of CHANGES_LOG is a change of a file below CHANGES_OF: what is about to happen, to which
path, in which thread, the number of the file that gets the path, and when. Before the
change number KILL_BEFORE, counted from 1 in each process, its process group gets
SIGKILL.
"""

import itertools
import json
import os
import signal
import sys
import threading
import time

_FOLDER = os.environ.get("CHANGES_OF", "")
_KILL_BEFORE = int(os.environ.get("KILL_BEFORE", "0"))
_EVENTS = {"os.rename": 1, "os.remove": 0, "os.rmdir": 0}  # and which argument changes
_OTHERS = ("lock.json", "progress.json")  # whatever the program does

_numbers = itertools.count(1)


def _note(event: str, arguments: tuple) -> None:
    if event not in _EVENTS:
        return
    path = os.fsdecode(arguments[_EVENTS[event]])
    if not path.startswith(f"{_FOLDER}/") or path.endswith(_OTHERS):
        return
    file = os.stat(arguments[0]).st_ino if event == "os.rename" else 0
    line = [event, path, f"{os.getpid()}-{threading.get_ident()}", file, time.time()]
    os.write(_log, f"{json.dumps(line)}\n".encode())
    if next(_numbers) == _KILL_BEFORE:
        os.killpg(0, signal.SIGKILL)


if _FOLDER:
    _flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    _log = os.open(os.environ["CHANGES_LOG"], _flags, 0o644)
    sys.addaudithook(_note)
