"""Measures what a few minutes of training on real photos teach.

    python -m benchmarks.photo_training --data DATA --output DIR

DATA holds `flickr8k/*.tar` (img2dataset tars with `captions` in their JSON),
`coco-mini`, `cifar10` and `flowers`. A fifth of the photos of Flickr8k, by the hash of
their keys, is held out. For every other photo, the first caption serves as its alt text
and the others as synthetic captions. Two arms train on them with the same seed and
steps, `tipsv2` with all terms and `contrastive` without self-supervision; `untrained`
is the first arm before its first step. Masks are those of COCO and, in `named`, those
of the classes of COCO that the captions name. Run again, it resumes training and
measures only what is missing. Prints a table; `DIR/results.json` has all numbers.
"""

import argparse
import io
import json
import pathlib
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.input import write_export
from pipeline import records
from pipeline.images import decoder as images
from trainer.distributed.sharding import make_mesh
from trainer.evals.run import load_encoder, run_task
from trainer.evals.sets import readers, samples
from trainer.evals.sets.captions import PLAIN
from trainer.evals.sets.readers import find_source
from trainer.pretrained.trained_model import find_trained_model
from trainer.split_names import TEST, TRAIN
from trainer.visuals import sheets

RECIPE = "benchmarks/photo_recipe.py"
ARM_TO_SETTINGS: dict[str, tuple[str, ...]] = {
    "tipsv2": (),
    "contrastive": (
        "self_supervision.distillation_weight=0",
        "self_supervision.patch_weight=0",
    ),
}
# Column of the table, arm, step; None is the last step.
CHECKPOINTS = (
    ("untrained", "tipsv2", 0),
    ("contrastive", "contrastive", None),
    ("tipsv2", "tipsv2", None),
)
TASKS = (
    ("retrieval", "held_out.tar"),
    ("knn_classification", "cifar10"),
    ("knn_classification", "flowers"),
    ("zero_shot_segmentation", "coco-mini"),
    ("zero_shot_segmentation", "named"),
    ("linear_segmentation", "coco-mini"),
)
N_MENTIONS = 50  # in the captions trained on, of a class of `named`
_SHOWN = ("recall@1", "recall@10", "accuracy_k10", "mean_iou", "pixel_accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--n-steps", type=int, help="default: the recipe's")
    parser.add_argument("--rng-seed", type=int, default=0)
    flags = parser.parse_args()
    if not (flags.output / "tokenizer.model").exists():
        prepare(flags.data, flags.output)
    settings = [f"rng_seed={flags.rng_seed}"]
    if flags.n_steps is not None:
        settings.append(f"n_steps={flags.n_steps}")
    last_metrics = {arm: train(flags.output, arm, settings) for arm in ARM_TO_SETTINGS}
    results = measure(flags.data, flags.output)
    print("\n".join(table(results)))
    print(json.dumps({"last_metrics": last_metrics}, indent=1))


def prepare(data: pathlib.Path, output: pathlib.Path) -> None:
    """Writes training shards, a tar of held-out photos, masks and a vocabulary."""
    found = find_source(f"{data}/flickr8k/*.tar")
    shards = output / "tfrecords"
    shards.mkdir(parents=True, exist_ok=True)
    train = [_sample(one) for one in found.of_split(TRAIN)]
    write_export(shards, train)
    with tarfile.open(output / "held_out.tar", "w") as tar:
        for one in found.of_split(TEST):
            captions = {"captions": one.captions[PLAIN]}
            _add(tar, f"{one.key}.jpg", _encoded(one))
            _add(tar, f"{one.key}.json", json.dumps(captions).encode())
    texts = [text for one in train for text in _texts(one)]
    write_named(find_source(str(data / "coco-mini")), texts, output / "named")
    flags = ("--data", shards, "--vocabulary-size", 2000)
    _call("trainer.tokenizer", *flags, "--output", output / "tokenizer.model")


def write_named(
    found: readers.Source, captions: Sequence[str], folder: pathlib.Path
) -> None:
    """Writes photos whose masks show only classes that the captions name often."""
    text = "\n".join(captions).lower()
    names = [
        name
        for name in found.classes
        if name != "background"
        and len(re.findall(rf"\b{re.escape(name)}\b", text)) >= N_MENTIONS
    ]
    values = np.zeros(256, np.uint8)  # 0 is ignored
    for value, name in enumerate(names, start=1):
        values[found.classes.index(name)] = value
    folder.mkdir(exist_ok=True)
    (folder / "classes.json").write_text(json.dumps(names))
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for one in found.samples():
            if "mask" in one.parts:
                _add(tar, f"{one.key}.jpg", _encoded(one))
                _add(tar, f"{one.key}.seg.png", sheets.to_png(values[one.mask()]))


def train(output: pathlib.Path, arm: str, settings: Sequence[str]) -> dict[str, Any]:
    """Trains one arm, unless it is trained; returns its last metrics."""
    tokenizer = f"data.tokenizer={output / 'tokenizer.model'}"
    changed = (tokenizer, *settings, *ARM_TO_SETTINGS[arm])
    _call(
        *("trainer.train", "--config", RECIPE, "--data", output / "tfrecords"),
        *("--workdir", output / arm, *(f"--set={value}" for value in changed)),
    )
    return json.loads((output / arm / "metrics.jsonl").read_text().splitlines()[-1])


def measure(data: pathlib.Path, output: pathlib.Path) -> dict[str, Any]:
    """Measures column by task and data; saves each result at once."""
    path = output / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    encoder = None  # one for all, since the models are equal: it compiles once
    for name, arm, step in CHECKPOINTS:
        found = find_trained_model(output / arm, step)
        loaded, params = load_encoder(found, make_mesh())
        encoder = encoder or loaded
        measured = results.setdefault(name, {})
        for task, place in TASKS:
            key = f"{task} {place}"
            if key in measured:
                continue
            folder = output if (output / place).exists() else data
            settings = found.config.run.evaluation
            print(f"{name}: {key}", file=sys.stderr)
            measured[key] = run_task(
                task, f"{folder / place}", encoder, params, settings, is_shown=True
            )
            path.write_text(json.dumps(results, indent=1) + "\n")
    return results


def table(results: dict[str, Any]) -> Iterator[str]:
    """Formats results as Markdown, in per cent."""
    columns = [name for name, *_ in CHECKPOINTS]
    name_to_numbers = {name: dict(_numbers(results[name])) for name in columns}
    yield f"| % | {' | '.join(columns)} |"
    yield f"| --- |{' ---: |' * len(columns)}"
    for row in name_to_numbers[columns[0]]:
        cells = (f"{100 * name_to_numbers[name][row]:.1f}" for name in columns)
        yield f"| {row} | {' | '.join(cells)} |"


def _numbers(found: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in found.items():
        if isinstance(value, dict) and name != "iou_by_class":
            yield from _numbers(value, f"{prefix}{name} ")
        elif name in _SHOWN or name.endswith("_mean_iou"):
            yield prefix + name, value


def _sample(one: samples.Sample) -> records.Sample:
    image = _encoded(one)
    first, *others = one.captions[PLAIN]
    height, width = images.open_image(image).size
    return records.Sample(
        sample_id=records.sample_id(image, first.encode()),
        image=image,
        image_format="jpeg",
        width=width,
        height=height,
        alt_text=first,
        captions={"human": tuple(others)},
        alignment_score=0.0,  # not measured: there is no encoder of photos
        source="flickr8k",
        seeds=(),
    )


def _texts(one: records.Sample) -> tuple[str, ...]:
    return one.alt_text, *one.captions["human"]


def _encoded(one: samples.Sample) -> bytes:
    image = one.encoded("image")
    if not isinstance(image, bytes):
        raise ValueError(f"{one.name}: expected an encoded image")
    return image


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _call(module: str, *arguments: object) -> None:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    print(f"$ {' '.join(command)}", file=sys.stderr, flush=True)
    if code := subprocess.run(command).returncode:
        raise SystemExit(code)  # it has printed its error


if __name__ == "__main__":
    main()
