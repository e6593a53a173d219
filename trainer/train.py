"""The trainer: batch, step, evaluate, save.

    python -m trainer.train --config FILE.py --workdir DIR \\
        --data [NAME=]RUN/tfrecords... [--set a.b=value]...

Run again, the same command resumes where it stopped, bit for bit, and does nothing if
the run is finished. The workdir holds `config.json`, `tokenizer.model`,
`metrics.jsonl`, TensorBoard events, `checkpoints/` and `compiled/`.
"""

import contextlib
import dataclasses
import pathlib
import sys
import textwrap
from collections.abc import Sequence

from recipes import command_line, interrupts
from trainer.command_line import train_parser

command_line.begin(__name__, train_parser)

import grain
import jax
import optax
from jax.sharding import Mesh

from trainer.config import TrainConfig
from trainer.config_files import load
from trainer.data.batch_stream import stream_batches
from trainer.data.batches import Batch, SkippedRecords, ViewSample, check_request
from trainer.data.mixture import open_mixture
from trainer.data.shards import RecordError
from trainer.data.text_tokenizer import Tokenizer, check_size
from trainer.distributed import processes
from trainer.distributed.sharding import check_batch, make_mesh, to_devices
from trainer.evals.frozen_encoder import Encoder
from trainer.evals.in_training import (
    EvaluationError,
    Evaluations,
    missing_evaluations,
)
from trainer.evals.run import check_tasks
from trainer.loop import flops, workdir
from trainer.loop.checkpoints import CheckpointError, Checkpoints, find_steps
from trainer.loop.metrics import NotFiniteError, TrainingLog
from trainer.loop.preemption import Preemption
from trainer.loop.profiler import Profiler
from trainer.loop.trackers import TrackerError, check_trackers, open_trackers
from trainer.models.two_tower import abstract_params
from trainer.pretrained.starting_point import (
    StartingPoint,
    find_starting_point,
    initial_state,
)
from trainer.step.optimizer import check_frozen, decaying, make_optimizer
from trainer.step.state import State, abstract_state
from trainer.step.terms.declared import declared_terms, untrained
from trainer.step.train_step import make_train_step


@dataclasses.dataclass(frozen=True)
class Job:
    """A run whose configuration and data have been checked against each other."""

    config: TrainConfig
    folder: pathlib.Path  # the workdir
    view: ViewSample
    mesh: Mesh
    start: StartingPoint
    missing_evaluations: Sequence[str] = ()  # of the checkpoint that it resumes from
    is_finished: bool = False


def train(job: Job) -> None:
    """Trains from the latest checkpoint, or from scratch, to the last step.

    Raises EvaluationError at the end if evaluations have failed.
    """
    config, run, mesh = job.config, job.config.run, job.mesh
    _keep_compiled(job.folder)
    optimizer = make_optimizer(config.optimizer, config.n_steps)
    train_step = make_train_step(config, optimizer, mesh, job.start.teacher_model)
    evaluations = Evaluations(config, Encoder(config, job.view.tokenizer, mesh))

    with (
        contextlib.closing(_open_stream(job)) as stream,
        _open_checkpoints(job) as saved,
        Preemption() as preemption,
        Profiler(job.folder, run.n_profiled_steps) as profiler,
    ):
        state = _first_state(job, optimizer, saved, stream)
        first_step = int(state["step"])
        with _open_log(job, first_step) as log:
            skipped = _count_skipped(job, first_step, log)
            evaluations.measure(first_step, state, log, job.missing_evaluations)
            for step in range(first_step + 1, config.n_steps + 1):
                with log.waiting():
                    batch = next(stream)
                log.skip(skipped.count(batch))
                state, metrics = train_step(state, to_devices(mesh, batch))
                log.count(step, metrics, batch["sample_id"])
                with log.pausing():
                    profiler.after_step(step, metrics)
                is_asked = preemption.is_asked(step)
                is_due = config.is_checkpoint_due(step)
                is_saved = is_due or is_asked
                if is_saved or step % run.n_steps_per_log == 0:
                    log.write(step, metrics)
                if is_saved:
                    with log.pausing():
                        saved.save(state, stream)
                if is_asked:
                    print(f"asked to stop: saved step {step}")
                    return
                if is_due and run.evaluations:
                    with log.pausing():
                        saved.wait()
                        evaluations.measure(step, state, log, run.evaluations)
    evaluations.check()


def _keep_compiled(folder: pathlib.Path) -> None:
    """Lets a run that resumes load what it compiled, if JAX has no cache already."""
    if not jax.config.jax_compilation_cache_dir:
        place = str(folder.absolute() / workdir.COMPILED)
        jax.config.update("jax_compilation_cache_dir", place)


def _first_state(
    job: Job,
    optimizer: optax.GradientTransformation,
    saved: Checkpoints,
    stream: grain.DatasetIterator,
) -> State:
    """That of the latest checkpoint; without one the untrained, which it saves."""
    config, mesh, start = job.config, job.mesh, job.start
    shapes = abstract_state(config, optimizer, mesh, start.teacher_model)
    state = saved.resume(shapes, stream)
    if state is None:
        state = initial_state(config, optimizer, mesh, start)
        saved.save(state, stream)
    elif start.teacher is not None:
        kept, _ = start.teacher.teacher(mesh)
        state = {**state, "teacher": kept}
    return state


def _open_stream(job: Job) -> grain.DatasetIterator[Batch]:
    """This process's rows of every batch."""
    return stream_batches(
        job.view,
        job.config.run,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )


def _open_checkpoints(job: Job) -> Checkpoints:
    run = job.config.run
    return Checkpoints(
        job.folder / workdir.CHECKPOINTS,
        run.n_checkpoints_kept,
        run.n_steps_per_kept_checkpoint,
        left_out=() if job.start.teacher is None else ("teacher",),
    )


def _open_log(job: Job, first_step: int) -> TrainingLog:
    return TrainingLog(
        job.folder / workdir.metrics_file_name(),
        first_step=first_step,
        n_steps=job.config.n_steps,
        batch_size=job.config.data.batch_size,
        cost=flops.step_cost(job.config, job.start.teacher_model),
        trackers=open_trackers(job.config, job.folder, first_step),
    )


def _count_skipped(job: Job, first_step: int, log: TrainingLog) -> SkippedRecords:
    """Continues the count of the steps before."""
    return SkippedRecords(
        job.view,
        job.config.run.max_skipped_share,
        n_shown=first_step * job.config.data.batch_size // jax.process_count(),
        n_skipped=log.n_records_skipped,
    )


def prepare(
    config_file: str,
    data: Sequence[str],
    folder: pathlib.Path,
    overrides: Sequence[str],
) -> Job:
    """Reads and checks everything that a run needs, before any work starts.

    Makes the workdir, or updates its config.json, once all checks pass.

    Raises ValueError, with one line for the user, if something does not fit.
    """
    config = load(config_file, overrides)
    mesh = make_mesh(config.compute.n_fsdp)
    check_batch(mesh, config.data.batch_size, config.compute.n_microbatches)
    shards = open_mixture(data, config.data.mixture)
    check_request(shards, config.data)
    tokenizer = Tokenizer(config.data.tokenizer, config.model.text.max_tokens)
    check_size(tokenizer, config.model.text)
    patch_px = config.model.vision.patch_size_px
    view = ViewSample(
        shards,
        tokenizer,
        config.data,
        config.rng_seed,
        config.self_supervision,
        patch_px,
    )
    if _is_finished(folder):
        return Job(
            config, folder, view, mesh, StartingPoint(None, None), is_finished=True
        )
    check_tasks(config.run.evaluations, config.run.evaluation, patch_px)
    check_trackers(config.run.trackers)
    _check_trained(config)
    steps = find_steps(folder / workdir.CHECKPOINTS)
    found = find_starting_point(
        config, is_new=not steps, teacher_step=workdir.teacher_step(folder)
    )
    step = max(steps, default=0)
    missing = missing_evaluations(folder, config, step)
    workdir.claim(folder, config, shards.fingerprint, step, found.teacher_fingerprint)
    return Job(config, folder, view, mesh, found, missing)


def _check_trained(config: TrainConfig) -> None:
    """Checks added terms and frozen patterns; warns of what decays untrained."""
    terms = declared_terms(config)
    has_head = config.self_supervision.is_on
    params = abstract_params(config.model, has_head=has_head)
    check_frozen(params, config.optimizer)
    if names := decaying(params, untrained(terms, params), config.optimizer):
        print(
            f"warning: no term trains {', '.join(names)}, whose weights decay;"
            " optimizer.frozen would keep them",
            file=sys.stderr,
        )


def _is_finished(folder: pathlib.Path) -> bool:
    """Whether a run reached its last step and has all evaluations that it asked for."""
    if not (folder / workdir.CONFIG).exists():
        return False
    config = workdir.load_config(folder)
    is_trained = config.n_steps in find_steps(folder / workdir.CHECKPOINTS)
    return is_trained and not missing_evaluations(folder, config, config.n_steps)


def _describe_finished(job: Job) -> str:
    """The line printed for a finished run.

    Raises ValueError if its configuration or data differ from those of the command.
    """
    changed = workdir.find_changes(job.folder, job.config, job.view.shards.fingerprint)
    values = [f"{name}={old!r}, not {new!r}" for name, (old, new) in changed.items()]
    left = f"; left as it is: {'; '.join(values)}" if values else ""
    found = f"{job.folder}: already trained to step {job.config.n_steps}{left}"
    return textwrap.shorten(found, 300)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; see the module."""
    flags = train_parser().parse_args(arguments)
    with command_line.exits(command_line.WRONG_USAGE, ValueError, OSError):
        if flags.distributed:
            processes.join()
        job = prepare(flags.config, flags.data, flags.workdir, flags.overrides)
        if job.is_finished:
            print(_describe_finished(job))
            return
    errors = (
        CheckpointError,
        RecordError,
        EvaluationError,
        NotFiniteError,
        TrackerError,
    )
    with (
        command_line.exits(command_line.FAILED, *errors, OSError),
        interrupts.saying(lambda: _describe_next(flags.workdir)),
    ):
        train(job)


def _describe_next(folder: pathlib.Path) -> str:
    steps = find_steps(folder / workdir.CHECKPOINTS)
    if not steps:
        return "the same command starts over, as there is no checkpoint yet"
    return f"the same command resumes after step {steps[-1]}, the last checkpoint"


if __name__ == "__main__":
    main()
