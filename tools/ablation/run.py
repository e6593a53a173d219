"""Trains and measures the arms of the ablation.

    python -m tools.ablation.run --output DIR                      all arms, three seeds
    python -m tools.ablation.run --output DIR --arm NAME --seed N  one of them

DIR holds the drawn web, the curated and the raw shards, a workdir for each training and
`results/ARM-SEED.json`. Arms with a result are skipped, and a stopped training resumes.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from multiprocessing import queues
from typing import Any

import jax

from recipes import command_line
from tools.ablation import arms, measures, web
from tools.ablation.arms import ARMS, SIZES, Arm, Size
from tools.ablation.texts import GRANULARITIES
from trainer import train
from trainer.pretrained import trained_model
from trainer.pretrained.trained_model import find_trained_model

_HERE = pathlib.Path(__file__).parent
_ROOT = _HERE.parents[1]


class StoppedError(RuntimeError):
    """A training that was asked to stop before its last step."""


@dataclasses.dataclass(frozen=True)
class AblationFolder:
    """The paths of an ablation; `folder` is absolute."""

    folder: pathlib.Path

    @property
    def web(self) -> pathlib.Path:
        """The drawn web."""
        return self.folder / "web"

    @property
    def tokenizer(self) -> pathlib.Path:
        """The vocabulary of all arms."""
        return self.folder / "tokenizer.model"

    def shards(self, name: str) -> pathlib.Path:
        """The training shards of the curated or the raw crawl."""
        return self.folder / name / "tfrecords"

    def workdir(self, arm: str, seed: int) -> pathlib.Path:
        """The checkpoints of one training."""
        return self.folder / "runs" / f"{arm}-{seed}"

    def result(self, arm: str, seed: int) -> pathlib.Path:
        """The figures of one training."""
        return self.folder / "results" / f"{arm}-{seed}.json"

    def folders(self, seed: int) -> Mapping[str, pathlib.Path]:
        """The paths that configurations name: workdirs by arm, and `tokenizer`."""
        workdirs = {name: self.workdir(name, seed) for name in ARMS}
        return {**workdirs, "tokenizer": self.tokenizer}


def prepare(paths: AblationFolder, size: Size) -> None:
    """Draws the web, curates it, exports it raw as well, and trains the vocabulary.

    Steps whose output exists are skipped; the vocabulary comes last.
    """
    if web.is_written(size.web, paths.web) and paths.tokenizer.exists():
        return
    web.write(size.web, paths.web)
    captions = [
        f"granularities.{i}.checkpoint={paths.web}/captions/{name}.parquet"
        for i, name in enumerate(GRANULARITIES)
    ]
    for name, recipe in ((arms.CURATED, "curation.py"), (arms.RAW, "raw.py")):
        flags = ("--config", _HERE / recipe, "--output", paths.folder / name)
        crawl = ("--input", f"{paths.web}/crawl/*.tar")
        seeds = ("--seeds", f"scenes={paths.web}/shapes/train/*.tar")
        _call("pipeline.run", "curate", *flags, *crawl, *seeds, *_set(captions))
    settings = arms.settings(ARMS[arms.BASE], size, 0, paths.folders(0))
    n_pieces = settings["model"]["text"]["vocabulary_size"]
    flags = ("--data", paths.shards(arms.CURATED), "--output", paths.tokenizer)
    _call("trainer.tokenizer", *flags, "--vocabulary-size", n_pieces)


def run_arm(
    paths: AblationFolder, size: Size, arm: Arm, seed: int, commit: str
) -> None:
    """Trains and measures an arm, after its teacher if it has one."""
    path = paths.result(arm.name, seed)
    settings = _describe(arms.settings(arm, size, seed, paths.folders(seed)))
    if _is_done(path, settings):
        return
    if arm.teacher:
        run_arm(paths, size, ARMS[arm.teacher], seed, commit)
    start = time.perf_counter()
    workdir = paths.workdir(arm.name, seed)
    flags = ("--data", paths.shards(arm.shards), "--workdir", workdir)
    changes = _set(arms.overrides(arm, size, seed, paths.folders(seed)))
    train.main([*map(str, ("--config", arms.CONFIG, *flags)), *changes])
    trained_s = time.perf_counter() - start
    found = find_trained_model(workdir)
    check_finished(found)
    figures = measures.measure(found, paths.web)
    seconds = {
        "train_s": round(trained_s, 1),
        "evaluate_s": round(time.perf_counter() - start - trained_s, 1),
    }
    names = {"arm": arm.name, "seed": seed, "commit": commit}
    _write(path, {**names, **seconds, "figures": figures, **settings})


def check_finished(found: trained_model.TrainedModel) -> None:
    """Raises StoppedError if the trainer was asked to stop before its last step."""
    if found.step < found.config.n_steps:
        raise StoppedError(
            f"{found.folder}: asked to stop at step {found.step} of"
            f" {found.config.n_steps}; the same command goes on"
        )


def _is_done(path: pathlib.Path, settings: dict[str, Any]) -> bool:
    """Raises ValueError if there is a result of other settings."""
    if not path.exists():
        return False
    found = json.loads(path.read_text())["settings_digest"]
    if found != settings["settings_digest"]:
        raise ValueError(f"{path}: of other settings, expected another --output")
    return True


def run_all(
    paths: AblationFolder, size: Size, seeds: Sequence[int], n_workers: int
) -> None:
    """Runs all arms of the first seed, then of the next, in `n_workers` processes.

    So the first seeds are complete when time runs out.
    """
    context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
    commit = _commit()  # of the code that runs: files may change meanwhile
    cores: queues.SimpleQueue[set[int]] = context.SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[:n_workers]:
        cores.put({core} if n_workers > 1 else os.sched_getaffinity(0))
    with futures.ProcessPoolExecutor(
        n_workers, context, initializer=_start, initargs=(paths, cores)
    ) as pool:
        jobs = [
            pool.submit(run_arm, paths, size, arm, seed, commit)
            for seed in seeds
            for arm in ARMS.values()
        ]
        try:
            for job in futures.as_completed(jobs):
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _start(paths: AblationFolder, cores: queues.SimpleQueue[set[int]]) -> None:
    """Takes the cores of a new process before JAX counts them."""
    os.sched_setaffinity(0, cores.get())
    _share_compiled_programs(paths)


def _share_compiled_programs(paths: AblationFolder) -> None:
    """Lets seeds share compiled programs, and all arms those of evaluations."""
    jax.config.update("jax_compilation_cache_dir", str(paths.folder / "compiled"))


def _describe(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without paths of this machine, and a digest of them."""
    data = {**settings["data"], "tokenizer": ""}
    run = {"evaluation": settings["run"]["evaluation"]}
    compared = {**settings, "data": data, "run": run, "teacher_from": ""}
    text = json.dumps(compared, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {"settings_digest": digest, "settings": compared}


def _write(path: pathlib.Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, path)


def _commit() -> str:
    """The commit of the repository, with "+" if files differ; "" outside of one."""
    git = ["git", "-C", str(_ROOT)]
    found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False)
    return found.stdout.strip() + ("+" if changed.returncode else "")


def _set(changes: Sequence[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def _call(module: str, *arguments: object) -> None:
    """Runs `python -m module ...`. Raises CalledProcessError when it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    subprocess.run(command, check=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_line.Parser(
        prog="python -m tools.ablation.run",
        description="Trains and measures the arms of the ablation on drawn scenes.",
    )
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--arm", choices=list(ARMS), help="default: all of them")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="with --arm")
    parser.add_argument("--n-seeds", type=int, default=3, metavar="N", help="of all")
    parser.add_argument(
        "--size",
        choices=list(SIZES),
        default="small",
        help="long: more steps; full: for a GPU",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="arms trained side by side; with more than one each takes one core (1)",
    )
    flags = parser.parse_args(arguments)
    paths, size = AblationFolder(flags.output.absolute()), SIZES[flags.size]
    n_cores = len(os.sched_getaffinity(0))
    errors = (StoppedError, OSError, subprocess.CalledProcessError)
    with (
        command_line.exits(command_line.WRONG_USAGE, ValueError),
        command_line.exits(command_line.FAILED, *errors),
    ):
        if not 1 <= flags.workers <= n_cores:
            expected = f"1 to {n_cores}, the number of cores"
            raise ValueError(f"--workers={flags.workers}: expected {expected}")
        prepare(paths, size)
        if flags.arm:
            _share_compiled_programs(paths)
            run_arm(paths, size, ARMS[flags.arm], flags.seed, _commit())
        else:
            run_all(paths, size, range(flags.n_seeds), flags.workers)


if __name__ == "__main__":
    main()
