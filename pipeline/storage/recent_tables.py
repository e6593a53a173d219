"""Small tables of object stores that this process wrote or read last.

Steps of a stage read the table of a shard one after the other, and each read of a store
costs a request and its delay. The contents of a table never change, since its name
changes with all that they depend on; a command begins with none.
"""

import collections
import threading

MAX_BYTES = 1 << 20  # of one table
_MAX_BYTES_IN_ALL = 64 << 20

_path_to_data: collections.OrderedDict[str, bytes] = collections.OrderedDict()
_n_bytes = 0  # of all of them
_lock = threading.Lock()


def find(path: str) -> bytes | None:
    """The bytes of a table; None if it has to be read."""
    with _lock:
        data = _path_to_data.get(path)
        if data is not None:
            _path_to_data.move_to_end(path)
        return data


def keep(path: str, data: bytes) -> None:
    """Keeps a table, unless it is large, and drops those that were used before."""
    global _n_bytes
    if len(data) > MAX_BYTES:
        return
    with _lock:
        _n_bytes += len(data) - len(_path_to_data.pop(path, b""))
        _path_to_data[path] = data
        while _n_bytes > _MAX_BYTES_IN_ALL:
            _, dropped = _path_to_data.popitem(last=False)
            _n_bytes -= len(dropped)


def forget() -> None:
    """Drops all tables, such as at the beginning of a command and in a forked child."""
    global _lock, _n_bytes, _path_to_data
    _lock = threading.Lock()  # a fork may have copied it while it was held
    _path_to_data = collections.OrderedDict()
    _n_bytes = 0
