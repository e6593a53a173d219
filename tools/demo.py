"""The demo: draws a crawl, curates it, trains a tiny model on it and prints results.

    python -m tools.demo --output demo

Every step is a command that a user would type; it is printed before it runs.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from pipeline.engine.run_folder import RunFolder
from pipeline.records import INDEX_DTYPE, Sample, parse_sample
from pipeline.run import open_run
from tools.grade_decisions import Grade, grade, read_outcomes

RECIPE = "curation_configs/demo.py"
TRAINING = "trainer/configs/demo.py"
VOCABULARY_SIZE = 200
N_EXAMPLES = 3
console = Console(width=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo"))
    parser.add_argument("--n-pairs", type=int, default=2000)
    parser.add_argument("--rng-seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.monotonic()
    demo(arguments.output, arguments.n_pairs, arguments.rng_seed)
    print(f"done in {time.monotonic() - start:.0f} s")


def demo(output: pathlib.Path, n_pairs: int, rng_seed: int) -> None:
    """Runs all steps and prints the tables."""
    web, curated, model = output / "web", output / "run", output / "model"
    vocabulary = output / "tokenizer.model"
    flags = [
        *("--config", RECIPE, "--output", str(curated)),
        *("--input", f"{web}/crawl/*.tar"),
        *("--eval", f"scenes={web}/evaluation/*.tar"),
        *("--seeds", f"scenes={web}/seeds/*.tar"),
    ]
    _call(
        "pipeline.scenes", "--output", web, "--n-pairs", n_pairs, "--rng-seed", rng_seed
    )
    _call("pipeline.run", "curate", *flags)
    shards = curated / "tfrecords"
    size = ("--vocabulary-size", VOCABULARY_SIZE)
    _call("trainer.tokenizer", "--data", shards, *size, "--output", vocabulary)
    tokenizer = ("--set", f"data.tokenizer={vocabulary}")
    training = ("--config", TRAINING, "--data", shards, "--workdir", model)
    _call("trainer.train", *training, *tokenizer)
    before, after = _measure(model, web, step=0), _measure(model, web)
    run = open_run(["curate", *flags])
    truth = pq.read_table(web / "truth.parquet")
    _show_funnel(run, grade(truth, read_outcomes(run)))
    _show_captions(shards)
    _show_training(model)
    _show_evaluations(before, after)
    page = curated / "report/index.html"
    places = {"crawl": web, "run": curated, "report": page, "shards": shards}
    _show_places(places | {"model": model})


def _call(module: str, *arguments: object) -> None:
    """Runs `python -m module ...`."""
    subprocess.run(_command(module, arguments), check=True)


def _command(module: str, arguments: Sequence[object]) -> list[str]:
    words = ["-m", module, *map(str, arguments)]
    print(f"\n$ python {shlex.join(words)}", flush=True)
    return [sys.executable, *words]


def _measure(
    model: pathlib.Path, web: pathlib.Path, step: int | None = None
) -> dict[str, Any]:
    """Evaluates a checkpoint, by default the last one, on both tasks."""
    chosen = () if step is None else ("--step", step)
    name_to_result = {}
    for task in ("zero_shot_classification", "retrieval"):
        flags = ("--checkpoint", model, "--task", task, "--data", web / "evaluation")
        command = _command("trainer.evaluate", (*flags, *chosen))
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        name_to_result[task] = json.loads(done.stdout)
    return name_to_result


def _show_funnel(run: RunFolder, outcome_to_grade: Mapping[str, Grade]) -> None:
    """Prints the ledger, with precision and recall against the planted truth."""
    table = Table(title="outcomes of the pairs", title_justify="left")
    for column in ("outcome", "planted", "decided", "precision", "recall"):
        table.add_column(column, justify="left" if column == "outcome" else "right")
    for outcome, found in outcome_to_grade.items():
        table.add_row(
            outcome,
            f"{found.n_planted:,}",
            f"{found.n_decided:,}",
            f"{found.precision:.3f}",
            f"{found.recall:.3f}",
        )
    console.print(table)
    ledger = json.loads(pathlib.Path(run.root, "ledger.json").read_text())
    n_dropped = sum(ledger["dropped"].values())
    parts = (ledger["kept"], n_dropped, ledger["unreadable"])
    console.print(f"read {ledger['read']:,} = kept + dropped + unreadable = {parts}")


def _show_captions(shards: pathlib.Path) -> None:
    """Prints the number of captions, and the captions of some samples."""
    manifest = json.loads((shards / "manifest.json").read_text())
    n = manifest["n_samples"]
    counts = ", ".join(
        f"{name} {n - manifest['n_without_granularity'][name]:,}"
        for name in manifest["granularities"]
    )
    console.print(f"\n{n:,} samples with captions: {counts}")
    for sample in _first_samples(shards / manifest["shards"][0]["name"], N_EXAMPLES):
        console.print(f"  alt text  {sample.alt_text}", markup=False)
        for granularity in manifest["granularities"]:
            texts = " | ".join(sample.captions.get(granularity, ()))
            console.print(f"  {granularity:9} {texts}", markup=False)
        console.print()


def _first_samples(shard: pathlib.Path, n: int) -> list[Sample]:
    index = np.fromfile(f"{shard}.index", INDEX_DTYPE, count=n)
    with shard.open("rb") as file:
        return [_read_sample(file, *entry) for entry in index.tolist()]


def _read_sample(file: BinaryIO, offset: int, length: int) -> Sample:
    file.seek(offset)
    return parse_sample(file.read(length))


def _show_training(model: pathlib.Path) -> None:
    lines = (model / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    first, last = metrics[0], metrics[-1]
    console.print(
        f"training loss {first['loss']:.3f} at step {first['step']}, "
        f"{last['loss']:.3f} at step {last['step']}"
    )


def _show_evaluations(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    table = Table(title="untrained and trained model", title_justify="left")
    for column in ("measure", "before", "after"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    pairs = zip(_numbers(before), _numbers(after), strict=True)
    for (name, old), (_, new) in pairs:
        table.add_row(name, f"{old:.3f}", f"{new:.3f}")
    console.print(table)


def _numbers(
    result: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, float]]:
    """Yields accuracies and recalls at 1 from nested results."""
    for name, value in result.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name} ")
        elif name == "accuracy" or name.endswith("@1"):
            yield prefix + name, value


def _show_places(name_to_folder: Mapping[str, pathlib.Path]) -> None:
    for name, folder in name_to_folder.items():
        console.print(f"{name:7} {folder}")


if __name__ == "__main__":
    main()
