"""Runs real photos through everything: curate, check the ledger, train.

    python -m benchmarks.photos --data DATA --output DIR

DATA holds `flickr8k/*.tar` (img2dataset tars) and `flowers/*.parquet`. Every tenth
photo of Flickr8k becomes an evaluation set; the flowers are curated seeds. The
checkpoints are those of the demo, which know drawn scenes only. So the run shows that
real files are processed and every pair is accounted for, not that the filter is useful.
"""

import argparse
import glob
import json
import pathlib
import subprocess
import sys
import tarfile
import time

RECIPE = "curation_configs/demo.py"
EVALUATION_EVERY = 10
# To the tiny SigLIP, photos look similar and misaligned with any text.
LOOSE = {
    "selection.alignment.min_score": -1,
    "selection.retrieval.min_similarity": -1,
    "selection.max_evaluation_similarity": 0.9999,
}
N_STEPS = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    data, output = arguments.data, arguments.output
    photos = f"{data}/flickr8k/*.tar"
    evaluation = output / "evaluation.tar"
    n_evaluation = write_tenth(photos, evaluation)
    start = time.monotonic()
    curate(photos, evaluation, data, output)
    seconds = time.monotonic() - start
    ledger = json.loads((output / "run/ledger.json").read_text())
    n_dropped = sum(ledger["dropped"].values())
    is_sum_right = ledger["read"] == ledger["kept"] + n_dropped + ledger["unreadable"]
    train(output)
    metrics = (output / "model/metrics.jsonl").read_text().splitlines()
    result = {
        "n_evaluation": n_evaluation,
        "curate_s": round(seconds),
        "ledger": {name: ledger[name] for name in ("read", "kept", "unreadable")},
        "dropped": {name: n for name, n in ledger["dropped"].items() if n},
        "ledger_adds_up": is_sum_right,
        "last_metrics": json.loads(metrics[-1]),
    }
    print(json.dumps(result, indent=1))


def write_tenth(pattern: str, path: pathlib.Path) -> int:
    """Copies every tenth photo of the tars into one tar; returns their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    n_photos = 0
    with tarfile.open(path, "w") as out:
        for source in sorted(glob.glob(pattern)):
            with tarfile.open(source) as tar:
                for member in tar:
                    if not member.name.endswith(".jpg"):
                        continue
                    if n_photos % EVALUATION_EVERY == 0:
                        out.addfile(member, tar.extractfile(member))
                    n_photos += 1
    return -(-n_photos // EVALUATION_EVERY)


def curate(
    photos: str, evaluation: pathlib.Path, data: pathlib.Path, output: pathlib.Path
) -> None:
    settings = [f"--set={field}={value}" for field, value in LOOSE.items()]
    _call(
        *("pipeline.run", "curate", "--config", RECIPE, "--output", output / "run"),
        *("--input", photos, "--eval", f"flickr8k_tenth={evaluation}"),
        *("--seeds", f"flowers={data}/flowers/*.parquet", *settings),
    )


def train(output: pathlib.Path) -> None:
    shards, vocabulary = output / "run/tfrecords", output / "tokenizer.model"
    size = ("--vocabulary-size", 1000)
    _call("trainer.tokenizer", "--data", shards, *size, "--output", vocabulary)
    settings = (
        f"data.tokenizer={vocabulary}",
        "model.text.vocabulary_size=1000",
        f"n_steps={N_STEPS}",
        f"run.n_steps_per_checkpoint={N_STEPS}",
        "optimizer.n_warmup_steps=5",
    )
    _call(
        *("trainer.train", "--config", "trainer/configs/demo.py", "--data", shards),
        *("--workdir", output / "model", *(f"--set={value}" for value in settings)),
    )


def _call(module: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
