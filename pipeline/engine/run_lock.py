"""One run at a time in a run folder, and what a killed run left behind there.

RUN/lock.json names its holder: host, process, command, time of the last renewal. It is
renewed while the run lasts and removed at its end. A run that is killed leaves it: the
next one takes it over when the process is dead, if it was of the same host, or when the
last renewal is too long ago. Object stores write it on the condition that nobody else
has; where a file system or a store minds no such condition, a run waits and looks
again.

The lock also names the job that its holder waits for, from when the runner has accepted
it until its engine says that it is over. If the holder ends before, the lock stays: no
other run begins beside the job, and `attach` goes on with it.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from pipeline.engine import engines, jobs
from pipeline.engine.jobs import EngineError, Job
from pipeline.storage import files, local_disks
from pipeline.storage.object_urls import is_object_url
from recipes import interrupts

NAME = "lock.json"

_EXPIRY_S = 120.0
_RENEWAL_S = 20.0
_SETTLE_S = 2.0  # far more than lies between the look at a lock and its taking over
_JOIN_S = 5.0
_LEFTOVER_AGE_S = 3600.0  # of a writer on another host: far more than one write takes

Clock = Callable[[], float]


class LockedError(ValueError):
    """Another run is at work in the folder; the message says which."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """The run that holds a lock, as the lock says; times are Unix times."""

    host: str
    pid: int
    command: str
    started_s: float
    renewed_s: float
    job: Job | None = None  # that it waits for

    def is_same_run(self, other: "Holder") -> bool:
        """Whether both locks are of one run, renewed or not."""
        return self._identity == other._identity

    @property
    def _identity(self) -> "Holder":
        return dataclasses.replace(self, renewed_s=0.0, job=None)


class Held:
    """The lock of a run folder in the hands of this process."""

    def __init__(self, path: str, own: Holder, clock: Clock) -> None:
        self._path, self._clock = path, clock
        self._holder = own
        self._writing = threading.RLock()  # SIGTERM may come while it is held

    @property
    def job(self) -> Job | None:
        """The job that the lock names."""
        return self._holder.job

    def name_job(self, job: Job | None) -> None:
        """Makes the lock name a job, or none any more."""
        with self._writing:
            self._holder = dataclasses.replace(self._holder, job=job)
            self.renew()

    def renew(self) -> None:
        """Writes the lock anew; ends the process if another run has taken it."""
        with self._writing:
            try:
                self._write(self._clock())
            # The next attempt comes long before the expiry; what object stores raise
            # has no type in common, and a thread that dies of it would lose the lock.
            except Exception as error:
                print(f"warning: {self._path} not renewed: {error}", file=sys.stderr)

    def release(self) -> None:
        """Removes the lock, or leaves it to `attach` if it names a job."""
        with self._writing:
            if self._holder.job is None:
                _remove(self._path, self._holder)
            else:
                self._write(0.0)  # so that it counts as left at once

    def _write(self, renewed_s: float) -> None:
        holder, version = _read_with_version(self._path)
        if holder is not None and not holder.is_same_run(self._holder):
            _stop(self._path, holder)
        renewed = dataclasses.replace(self._holder, renewed_s=renewed_s)
        files.replace(self._path, _to_json(renewed), version)


_path_to_held: dict[str, Held] = {}  # of this process


def acquire(
    folder: str, command: str, clock: Clock = time.time, *, takes_job: bool = False
) -> contextlib.AbstractContextManager[Held]:
    """Takes the lock of a run folder; the context renews and in the end removes it.

    Args:
      takes_job: takes over also the job that a launcher has left, whatever its state.

    Raises:
      LockedError: if another run holds it, or has left a job that is not over.
    """
    path, now_s = files.join(folder, NAME), clock()
    own = Holder(socket.gethostname(), os.getpid(), command, now_s, now_s)
    is_remote = files.is_remote(path)
    # A store that minds no conditions would create a lock that is there once more.
    if (is_remote and _read(path)) or not files.create(path, _to_json(own)):
        own = _take_over(path, own, now_s, takes_job=takes_job)
    if is_remote:
        if not _is_exclusive(path, own):
            time.sleep(_SETTLE_S)
        _expect_own(path, own)
    return _hold(path, own, clock)


def _is_exclusive(path: str, own: Holder) -> bool:
    """Whether the store minds conditions: it must not create the lock a second time."""
    again = dataclasses.replace(own, renewed_s=own.renewed_s + 1e-3)
    return not files.create(path, _to_json(again))


def is_held(folder: str, clock: Clock = time.time) -> bool:
    """Whether a run is at work in the folder: there is a lock, and its holder lives."""
    holder = _read(files.join(folder, NAME))
    return holder is not None and not _is_gone(holder, clock())


def named_job(folder: str) -> Job | None:
    """The job that the lock of a run folder names."""
    holder = _read(files.join(folder, NAME))
    return holder.job if holder else None


def name_job(folder: str, job: Job | None) -> None:
    """Makes the lock name a job, or none, if this process holds the folder's lock."""
    if held := _path_to_held.get(files.join(folder, NAME)):
        held.name_job(job)


def remove_leftovers(folder: str, clock: Clock = time.time) -> int:
    """Removes temporary files of killed writers; returns their number.

    In an object store these are uploads that were never ended. Only who holds the lock
    may do so. Files of processes that are alive stay.
    """
    if is_object_url(folder):
        return files.abort_uploads(folder)
    now_s = clock()
    left = [
        name
        for name, found in files.list_below(folder).items()
        if _is_left(name, age_s=now_s - (found.updated_s or now_s))
    ]
    files.delete(folder, left)
    return len(left)


def _is_left(path: str, age_s: float) -> bool:
    writer = local_disks.TEMPORARY.fullmatch(path)
    if writer is None:
        return False
    if writer["file_and_host"].endswith(f".{socket.gethostname()}"):
        return not _is_alive(int(writer["pid"]))
    return age_s > _LEFTOVER_AGE_S


def _take_over(path: str, own: Holder, now_s: float, *, takes_job: bool) -> Holder:
    """Takes a lock whose holder is gone; of two that try at once the later one gets it.

    Raises:
      LockedError: if the holder or its job is not gone, or another run was the later
        one.
    """
    holder, version = _read_with_version(path)
    if version is None and is_object_url(path):  # removed since
        if not files.create(path, _to_json(own)):
            raise _lost(path)
        return own
    if holder is not None:
        _expect_gone(path, holder, now_s)
        if takes_job:
            own = dataclasses.replace(own, job=holder.job)
        elif holder.job:
            _expect_over(path, holder.job)
        who = f"pid {holder.pid} on {holder.host}"
        print(f"takes over the lock of {who}, which is gone", file=sys.stderr)
    if not files.replace(path, _to_json(own), version):
        raise _lost(path)
    # Some stores remove what they replace, so that another run may create it anew.
    time.sleep(_SETTLE_S)
    _expect_own(path, own)
    return own


def _expect_over(path: str, job: Job) -> None:
    """Raises LockedError unless the engine of a job says that it is over."""
    go_on = jobs.how_to_go_on(path.removesuffix(f"/{NAME}"))
    try:
        state = engines.state_of(job)
    except EngineError as error:
        raise LockedError(
            f"{path}: expected no other run, but a launcher left {job}, and {error};"
            f" {go_on}; if it is certain that it is gone, --forget"
        ) from error
    if not jobs.is_over(state):
        raise LockedError(
            f"{path}: expected no other run, but {job} is {state} and its launcher is"
            f" gone: {go_on}"
        )
    print(f"{job} is {state}", file=sys.stderr)


def _expect_own(path: str, own: Holder) -> None:
    later = _read(path)
    if later is None or not later.is_same_run(own):
        raise _lost(path)


def _lost(path: str) -> LockedError:
    return LockedError(f"{path}: expected no other run, but one has just begun")


def _expect_gone(path: str, holder: Holder, now_s: float) -> None:
    if not _is_gone(holder, now_s):
        age_s = _age_s(holder, now_s)
        raise LockedError(
            f"{path}: expected no other run, but {holder.command!r} of pid"
            f" {holder.pid} on {holder.host} showed life {age_s:.0f} s ago; if it is"
            f" gone, remove this file or wait {_EXPIRY_S - age_s:.0f} s"
        )


def _is_gone(holder: Holder, now_s: float) -> bool:
    is_dead = holder.host == socket.gethostname() and not _is_alive(holder.pid)
    return is_dead or _age_s(holder, now_s) >= _EXPIRY_S


def _age_s(holder: Holder, now_s: float) -> float:
    return max(0.0, now_s - holder.renewed_s)


@contextlib.contextmanager
def _hold(path: str, own: Holder, clock: Clock) -> Iterator[Held]:
    """Renews the lock until the block ends, whether by an error or by SIGTERM."""
    is_over = threading.Event()
    held = Held(path, own, clock)
    renewing = threading.Thread(target=_renew, args=(held, is_over), daemon=True)

    def release() -> None:
        if os.getpid() == own.pid:  # a forked child inherits the handler of SIGTERM
            is_over.set()
            renewing.join(_JOIN_S)
            held.release()

    def leave() -> None:
        release()
        if held.job and os.getpid() == own.pid:
            go_on = jobs.how_to_go_on(path.removesuffix(f"/{NAME}"))
            print(f"warning: {held.job} may go on: {go_on}", file=sys.stderr)

    renewing.start()
    _path_to_held[path] = held
    with _before_sigterm(leave), interrupts.tidied(release):  # Ctrl-C says it itself
        try:
            yield held
        finally:
            del _path_to_held[path]
            leave()


@contextlib.contextmanager
def _before_sigterm(release: Callable[[], None]) -> Iterator[None]:
    """Calls `release` when SIGTERM comes, and lets the process die of it as ever."""

    def die(number: int, frame: FrameType | None) -> None:
        release()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if threading.current_thread() is not threading.main_thread():
        yield  # where Python sets no handlers
        return
    before = signal.signal(signal.SIGTERM, die)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _renew(held: Held, is_over: threading.Event) -> None:
    while not is_over.wait(_RENEWAL_S):
        held.renew()


def _stop(path: str, holder: Holder) -> NoReturn:
    """Ends the process at once: a run without the lock must not write any more."""
    who = f"pid {holder.pid} on {holder.host}"
    print(f"error: {path}: expected to hold it, but {who} does", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


def _remove(path: str, own: Holder) -> None:
    holder = _read(path)
    if holder is not None and holder.is_same_run(own):
        files.delete(path.removesuffix(NAME), [NAME])


def _read(path: str) -> Holder | None:
    return _read_with_version(path)[0]


def _read_with_version(path: str) -> tuple[Holder | None, files.Version | None]:
    """No holder if there is no lock; one that cannot be read is of nobody known."""
    try:
        data, version = files.read_with_version(path)
    except FileNotFoundError:
        return None, None
    try:
        return _parse(data), version
    except (KeyError, TypeError, ValueError):  # another run is about to write it
        updated_s = files.facts(path).updated_s
        return Holder("an unknown host", 0, "unknown", 0.0, updated_s), version


def _parse(data: bytes) -> Holder:
    fields = json.loads(data)
    return Holder(
        host=str(fields["host"]),
        pid=int(fields["pid"]),
        command=str(fields["command"]),
        started_s=float(fields["started_s"]),
        renewed_s=float(fields["renewed_s"]),
        job=Job.of(fields["job"]) if fields.get("job") else None,
    )


def _to_json(holder: Holder) -> bytes:
    return json.dumps(dataclasses.asdict(holder)).encode() + b"\n"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # sends nothing
    except (OverflowError, ProcessLookupError):
        return False
    except PermissionError:  # of another user
        return True
    return True
