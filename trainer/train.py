"""The trainer: batch, step, evaluate, save.

    python -m trainer.train --config FILE.py --workdir DIR \\
        --data [NAME=]RUN/tfrecords... [--set a.b=value]...

The same command goes on where it stopped, bit for bit, and does nothing when the run is
finished. The workdir holds `config.json`, `tokenizer.model`, `metrics.jsonl`,
TensorBoard events and `checkpoints/`.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence

from pipeline import cli, interrupts

cli.begin(__name__)

import grain
import jax
from jax.sharding import Mesh

from trainer import checkpoints, evaluate, flops, origins, processes, workdir
from trainer.checkpoints import CheckpointError
from trainer.config import TrainConfig
from trainer.evals.encoder import Encoder
from trainer.evals.samples import SampleError
from trainer.input import Batch, SkippedRecords, ViewSample, batches, check_request
from trainer.metrics import NotFiniteError, TrainingLog
from trainer.mixture import open_mixture
from trainer.optim import make_optimiser
from trainer.origins import Origins, initial_state
from trainer.preemption import Preemption
from trainer.profiler import Profiler
from trainer.recipes import load
from trainer.sharding import check_batch, make_mesh, to_devices
from trainer.shards import RecordError
from trainer.step import make_train_step
from trainer.tokenizer import Tokenizer, check_size


@dataclasses.dataclass(frozen=True)
class Job:
    """A run whose configuration and data fit each other."""

    config: TrainConfig
    folder: pathlib.Path  # the workdir
    view: ViewSample
    mesh: Mesh
    origins: Origins

    @property
    def is_done(self) -> bool:
        done = checkpoints.steps(self.folder / workdir.CHECKPOINTS)
        return self.config.n_steps in done


def train(job: Job) -> None:
    """Trains from the latest checkpoint, or from scratch, to the last step."""
    config, run, mesh = job.config, job.config.run, job.mesh
    optimiser = make_optimiser(config.optimiser, config.n_steps)
    teacher_model = job.origins.teacher_model
    train_step = make_train_step(config, optimiser, mesh, teacher_model)
    encoder = Encoder(config, job.view.tokenizer, mesh)
    folder = job.folder / workdir.CHECKPOINTS
    skipped = SkippedRecords(job.view)

    with (
        contextlib.closing(_batches(job)) as stream,
        checkpoints.Checkpoints(folder, run.n_checkpoints_kept) as saved,
        Preemption() as preemption,
        Profiler(job.folder, run.n_profiled_steps) as profiler,
    ):
        initial = initial_state(config, optimiser, mesh, job.origins)
        state = saved.resume(initial, stream)
        first_step = int(state["step"])
        with TrainingLog(
            job.folder / workdir.metrics_name(),
            first_step=first_step,
            n_steps=config.n_steps,
            batch_size=config.data.batch_size,
            cost=flops.cost(config, teacher_model),
        ) as log:
            for step in range(first_step + 1, config.n_steps + 1):
                with log.waiting():
                    batch = next(stream)
                log.skip(skipped.count(batch))
                state, metrics = train_step(state, to_devices(mesh, batch))
                log.count(step, metrics, batch["sample_id"])
                with log.pausing():
                    profiler.after(step, metrics)
                is_last = step == config.n_steps
                is_asked = preemption.is_asked(step)
                is_due = is_last or step % run.n_steps_per_checkpoint == 0
                is_saved = is_due or is_asked
                if is_due:
                    with log.pausing():
                        metrics |= evaluate.run_all(
                            run.evaluations, encoder, state["params"], run.evaluation
                        )
                if is_saved or step % run.n_steps_per_log == 0:
                    log.write(step, metrics)
                if is_saved:
                    with log.pausing():
                        saved.save(state, stream)
                if is_asked:
                    print(f"asked to stop: saved step {step}")
                    return


def _batches(job: Job) -> grain.DatasetIterator[Batch]:
    """This process's rows of every batch."""
    return batches(
        job.view,
        job.config.run,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )


def prepare(
    config_file: str,
    data: Sequence[str],
    folder: pathlib.Path,
    overrides: Sequence[str],
) -> Job:
    """Reads and checks everything that a run needs, before any work starts.

    Raises ValueError, with one line for the user, when something does not fit.
    """
    config = load(config_file, overrides)
    mesh = make_mesh(config.compute.n_fsdp)
    check_batch(mesh, config.data.batch_size, config.compute.n_microbatches)
    shards = open_mixture(data, config.data.mixture)
    check_request(shards, config.data)
    patch_px = config.model.vision.patch_size_px
    evaluate.check_tasks(config.run.evaluations, config.run.evaluation, patch_px)
    tokenizer = Tokenizer(config.data.tokenizer, config.model.text.max_tokens)
    check_size(tokenizer, config.model.text)
    is_new = not checkpoints.steps(folder / workdir.CHECKPOINTS)
    found = origins.find(config, is_new=is_new)
    workdir.claim(folder, config, shards.fingerprint)
    view = ViewSample(
        shards,
        tokenizer,
        config.data,
        config.rng_seed,
        config.self_supervision,
        config.model.vision.patch_size_px,
    )
    return Job(config, folder, view, mesh, found)


def main(arguments: Sequence[str] | None = None) -> None:
    flags = _parser().parse_args(arguments)
    with cli.exits(cli.WRONG_USAGE, ValueError, OSError):
        if flags.distributed:
            processes.join()
        job = prepare(flags.config, flags.data, flags.workdir, flags.overrides)
    if job.is_done:
        print(f"{job.folder}: already trained to step {job.config.n_steps}")
        return
    errors = (CheckpointError, RecordError, SampleError, NotFiniteError)
    with (
        cli.exits(cli.FAILED, *errors, OSError),
        interrupts.saying(lambda: _goes_on(flags.workdir)),
    ):
        train(job)


def _goes_on(folder: pathlib.Path) -> str:
    steps = checkpoints.steps(folder / workdir.CHECKPOINTS)
    if not steps:
        return "the same command begins anew, as there is no checkpoint yet"
    return f"the same command goes on behind step {steps[-1]}, the last checkpoint"


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python -m trainer.train",
        script="tips-train",
        description="Trains an image encoder and a text encoder on training shards."
        " Run again, it goes on where it stopped.",
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py",
        help="a Python file with get_config(), such as trainer/configs/demo.py",
    )
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="[NAME=]RUN/tfrecords",
        help="folder with manifest.json, shards and indexes; may be repeated, for a"
        " mixture with the weights of data.mixture",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        type=pathlib.Path,
        metavar="DIR",
        help="where checkpoints and metrics go; made if it does not exist",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="a.b=value",
        help="changes a field of the configuration; may be repeated",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help=processes.HELP,
    )
    return parser


if __name__ == "__main__":
    main()
