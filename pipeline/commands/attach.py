"""The command `attach`: goes on with a job whose launcher is gone.

In: a run folder whose lock names a job. Out: what its launcher would have said at the
end of the job, with the same exit codes; or no job any more.
"""

import argparse
import contextlib
import time

from pipeline.commands import configuration, stage_progress
from pipeline.commands.configuration import WRONG
from pipeline.engine import engines, jobs, progress, run_lock
from pipeline.engine.engines import Engine
from pipeline.engine.jobs import EngineError, Job
from pipeline.engine.run_folder import CONFIG_NAME, RunFolder, check_format
from pipeline.engine.run_lock import Held
from pipeline.storage import files, places
from recipes import interrupts
from recipes.command_line import FAILED, WRONG_USAGE, exits, warn

_PAUSE_S = 2.0  # between two questions
_PATIENCE_S = 900.0  # with an engine that answered before and does so no more
_GO_ON = "the same command goes on with what is there"


def attach(command: argparse.Namespace) -> None:
    """Waits for the job that the lock names, ends it, or forgets it."""
    root = command.output.rstrip("/") or "/"
    with exits(WRONG_USAGE, *WRONG):
        if command.cancel and command.forget:
            raise ValueError("--forget: expected it without --cancel")
        places.check([("--output", f"{root}/")])
        check_format("--output", root)
        if not files.is_file(files.join(root, CONFIG_NAME)):
            raise ValueError(
                f"--output {root}: expected a run folder with {CONFIG_NAME}"
            )
    going_on = interrupts.saying(lambda: progress.resume_hint(root))
    with going_on, _locked(root) as held:
        job = held.job
        if job is None:
            print(f"no job is left: {_GO_ON}")
        elif command.forget:
            held.name_job(None)
            print(f"forgotten: {job}; {_GO_ON}")
        else:
            with exits(FAILED, ValueError, RuntimeError):
                _go_on(root, held, job, is_cancelled=command.cancel)


def _locked(root: str) -> contextlib.AbstractContextManager[Held]:
    with exits(WRONG_USAGE, *WRONG):
        return run_lock.acquire(root, "attach", takes_job=True)


def _go_on(root: str, held: Held, job: Job, *, is_cancelled: bool) -> None:
    """Waits for the end of a job.

    Raises:
      EngineError: if its engine does not answer.
      RuntimeError: if the job failed, or somebody else has cancelled it.
    """
    engine, state = _ask_first(job)
    if jobs.is_over(state):
        held.name_job(None)
    if state == jobs.NOT_KNOWN:
        print(f"{job} is {state}: {_GO_ON}")
        return
    if is_cancelled:
        _cancel(held, job, engine, state)
        return
    stage = "caption" if job.stage == "flag" else job.stage
    with progress.watch(root, stage, _work_of(stage, root)) as watched:
        state = _wait(job, engine, state)
        held.name_job(None)
        if state != "DONE":
            reason = engine.error() or f"it ended as {state}"
            reason = reason.strip().rpartition("\n")[2]
            raise RuntimeError(f"{job}: {reason}; {jobs.where_to_look(job)}")
        counters = engine.counters(job.stage)
    if counters is None:
        print(f"{job.stage}: done, with counters that {job.runner} does not tell")
        return
    if job.stage == stage and stage_progress.has_work(counters):
        watched.record(counters, stage_progress.n_rows(stage, counters))
    print(f"{job.stage}: {stage_progress.describe(counters)}", flush=True)


def _ask_first(job: Job) -> tuple[Engine, str]:
    try:
        engine = engines.engine_of(job)
        return engine, engine.state()
    except EngineError as error:
        raise EngineError(
            f"{job}: {error}; try again, or --forget if it is certain that it is gone"
        ) from error


def _cancel(held: Held, job: Job, engine: Engine, state: str) -> None:
    if not jobs.is_over(state):
        engine.cancel()
        state = _wait(job, engine, state)
        held.name_job(None)
    print(f"{job} is {state}: {_GO_ON}")


def _work_of(stage: str, root: str) -> progress.Work:
    """The work of a stage by the record of the run; nothing if that cannot be used."""
    command = argparse.Namespace(
        command="attach", config="", output=root, set=[], input=[], eval=[], seeds=[]
    )
    try:
        run: RunFolder = configuration.open_run(command)
        return stage_progress.work_of(stage, run, run.config.granularities)
    except ValueError as error:
        warn([f"progress is not shown: {error}"])
        return progress.Work(0, lambda: 0)


def _wait(job: Job, engine: Engine, state: str) -> str:
    """The state in which a job ends, however long that takes."""
    answered_s = time.monotonic()
    while not jobs.is_over(state):
        time.sleep(_PAUSE_S)
        try:
            state = engine.state()
            answered_s = time.monotonic()
        except EngineError as error:
            if time.monotonic() - answered_s > _PATIENCE_S:
                raise EngineError(f"{job}: {error}") from error
    return state
