"""Measures how fast the trainer's input makes rows, and where its time goes.

Shards in, batches of one crop of 224 pixels and six of 98 out. The trainer also makes
masks and token ids. A tf.data pipeline and a loader with Pillow cut the same boxes;
neither draws them, and tf.data shrinks without smoothing. They take turns in one
process, and the best round of each counts, in images per second of CPU time, that of
loader processes included, which other programs on the machine change little. Prints
JSON.

    python -m benchmarks.input                 # draws 64 photos of 512 x 384 first
    taskset -c 0 python -m benchmarks.input    # on one core
"""

import argparse
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks import score
from pipeline.export import tfrecords
from pipeline.images import decoder as images
from pipeline.records import SCHEMA_VERSION, Sample, sample_id
from trainer import tokenizer
from trainer.config import DataConfig, RunConfig, SelfSupervisionConfig
from trainer.data import crops
from trainer.data.batch_stream import make_parts, stream_batches
from trainer.data.batches import ViewSample
from trainer.data.hashed_random import many_uniforms
from trainer.data.mixture import Mixture
from trainer.data.shards import Shards
from trainer.data.text_tokenizer import Tokenizer

BATCH_SIZE = 32
N_PHOTOS = 64
N_SAMPLES = 4096
SHARD = "train-00000-of-00001.tfrecord"

Boxes = list[list[crops.Crop]]  # of each sample: the global crop, then the local ones


def write_shards(folder: pathlib.Path, n_photos: int, n_samples: int) -> None:
    """Writes an export of drawn photos, about 40 kB each, over and over.

    Grain takes 0.7 ms to shuffle each of 64 samples, 0.02 ms for each of 4,096, and
    less for more.
    """
    photos = [score._photo(np.random.default_rng(n)) for n in range(n_photos)]
    samples = [_sample(n, photos[n % n_photos]) for n in range(n_samples)]
    write_export(folder, samples)


def write_export(folder: pathlib.Path, samples: Sequence[Sample]) -> None:
    """Writes an export of one shard; all samples have the first one's granularities."""
    path = folder / SHARD
    index = tfrecords.write_local(str(path), samples)
    (folder / f"{SHARD}.index").write_bytes(index.tobytes())
    n_bytes = path.stat().st_size
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    sizes = {"n_samples": len(samples), "n_bytes": n_bytes}
    shard = {"name": SHARD, **sizes, "sha256": digest}
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "granularities": [*samples[0].captions],
        "shards": [shard],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _sample(number: int, image: bytes) -> Sample:
    text = score.CAPTIONS[number % len(score.CAPTIONS)]
    return Sample(
        sample_id=sample_id(image, number.to_bytes(4)),
        image=image,
        image_format="jpeg",
        width=512,
        height=384,
        alt_text=f"{text} {number}",
        captions={"short": (text,)},
        alignment_score=0.5,
        source="drawn",
        seeds=(),
    )


def make_view(folder: pathlib.Path) -> ViewSample:
    shards = Shards(folder)
    model = folder / "tokenizer.model"
    model.write_bytes(tokenizer.train_vocabulary(tokenizer.shard_texts(shards), 200))
    return ViewSample(
        Mixture({"drawn": shards}),
        Tokenizer(str(model), 64),
        DataConfig(
            tokenizer=str(model),
            batch_size=BATCH_SIZE,
            granularity_weights={"short": 1.0},
        ),
        rng_seed=0,
        self_supervision=SelfSupervisionConfig(),
        patch_size_px=14,
    )


def draw_boxes(view: ViewSample, n_images: int) -> Boxes:
    """Draws boxes from the trainer's distribution, for contenders and stages."""
    config, drawn = view.config, []
    for index in range(n_images):
        draws = many_uniforms(35, "boxes", index.to_bytes(4)).reshape(7, 5)
        local_crops = crops.random_crops(384, 512, draws[1:], config.local_crop)
        first = crops.random_crop(384, 512, draws[0].tolist(), config.global_crop)
        drawn.append([first, *local_crops])
    return drawn


def trainer_loader(
    view: ViewSample, n_images: int, n_workers: int = 0
) -> Callable[[], int]:
    """Runs the whole loader, in one thread of this process or of others.

    A round ends when the loader has prefetched as much as when the round began, and
    rests, so that it does not prefetch during another contender's turn.
    """
    stream = stream_batches(view, RunConfig(n_threads=1, n_workers=n_workers))

    def rows() -> int:
        for _ in range(n_images // BATCH_SIZE):
            next(stream)
        _wait_for_rest()
        return n_images

    return rows


def _wait_for_rest() -> None:
    """Waits until no thread of these processes uses CPU time."""
    spent = None
    while spent is None or spent > 0.002:
        start = _cpu_s()
        time.sleep(0.1)
        spent = _cpu_s() - start


def _cpu_s() -> float:
    """CPU time of this process and of its loader processes, in seconds."""
    spent_ns = 0
    for process in multiprocessing.active_children():
        for path in pathlib.Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            spent_ns += int(path.read_text().split()[0])
    return time.process_time() + spent_ns * 1e-9


def views_alone(view: ViewSample, boxes: Boxes) -> Callable[[], int]:
    """Runs only the trainer's decoding and cropping."""
    photos = [view.shards[index].image for index in range(len(boxes))]

    def rows() -> int:
        for photo, chosen in zip(photos, boxes, strict=True):
            reduction = crops.reduction(chosen)
            image, factor = images.open_image(photo).decode_fast(reduction)
            cut_crops(image, chosen, factor)
        return len(boxes)

    return rows


def cut_crops(image: np.ndarray, chosen: list[crops.Crop], factor: int) -> None:
    for crop in chosen:
        side = crop.size_px
        crops.cut(image, crop, factor, np.empty((side, side, 3), np.uint8))


def pillow_rows(view: ViewSample, boxes: Boxes) -> int:
    rows = []
    for index, chosen in enumerate(boxes):
        sample = view.shards[index]
        image = Image.open(io.BytesIO(sample.image)).convert("RGB")
        views = [_pillow_view(image, crop) for crop in chosen]
        rows.append((views[0], np.stack(views[1:])))
        if len(rows) == BATCH_SIZE:
            for part in zip(*rows, strict=True):
                np.stack(part)
            rows = []
    return len(boxes)


def _pillow_view(image: Image.Image, crop: crops.Crop) -> np.ndarray:
    top, left, height, width = crop.box
    part = (left, top, left + width, top + height)
    side = (crop.size_px, crop.size_px)
    view = image.resize(side, Image.Resampling.BILINEAR, box=part)
    if crop.is_flipped:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(view)


def tensorflow_pipeline(folder: pathlib.Path, boxes: Boxes) -> Callable[[], int]:
    import tensorflow as tf  # takes seconds

    places = np.array([[crop.box for crop in chosen] for chosen in boxes], np.int32)
    flips = np.array([chosen[0].is_flipped for chosen in boxes])

    def resized(image: Any, box: Any, size_px: int) -> Any:
        part = tf.slice(image, [box[0], box[1], 0], [box[2], box[3], 3])
        return tf.cast(tf.image.resize(part, [size_px, size_px]), tf.uint8)

    def row(record: Any, chosen: Any, is_flipped: Any) -> Any:
        features = {"image": tf.io.FixedLenFeature([], tf.string)}
        data = tf.io.parse_single_example(record, features)["image"]
        image = tf.image.decode_jpeg(
            data, channels=3, fancy_upscaling=False, dct_method="INTEGER_FAST"
        )
        first = resized(image, chosen[0], 224)
        first = tf.cond(is_flipped, lambda: tf.reverse(first, [1]), lambda: first)
        return first, tf.stack([resized(image, chosen[i], 98) for i in range(1, 7)])

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    dataset = tf.data.Dataset.zip(
        (
            tf.data.TFRecordDataset(str(folder / SHARD)),  # ends with the boxes
            tf.data.Dataset.from_tensor_slices(places),
            tf.data.Dataset.from_tensor_slices(flips),
        )
    )
    dataset = dataset.map(row).batch(BATCH_SIZE).with_options(options)

    def rows() -> int:
        return sum(len(first) for first, _ in dataset.as_numpy_iterator())

    return rows


def stages(view: ViewSample, boxes: Boxes) -> dict[str, Callable[[], int]]:
    """Measures each part of the trainer's work alone, over all samples."""
    samples = [view.shards[index] for index in range(len(boxes))]
    decoded = [images.decode(sample.image).rgb for sample in samples[:BATCH_SIZE]]

    def over(items: Sequence, call: Callable[[Any], object]) -> Callable[[], int]:
        def run() -> int:
            for item in items:
                call(item)
            return len(items)

        return run

    def cut(number: int) -> None:
        image = decoded[number % len(decoded)]
        cut_crops(image, boxes[number], 1)

    def transfer() -> int:
        jax.block_until_ready(jax.device_put(whole))
        return BATCH_SIZE

    parts = make_parts(view, n_threads=1)
    whole = parts(0)
    return {
        "read": over(range(len(samples)), view.shards.__getitem__),
        "decode": over(samples, lambda s: images.open_image(s.image).decode_fast(1)),
        "crop": over(range(len(samples)), cut),
        "mask": over(samples, lambda s: view._mask(s, "0")),
        "tokenize": over(samples, lambda s: view.tokenizer([s.alt_text, s.alt_text])),
        "order": over(range(len(samples)), parts.order),
        "transfer": transfer,
    }


@dataclasses.dataclass(frozen=True)
class Timing:
    """The best round of one contender."""

    images_per_cpu_s: float
    cpu_ms_per_image: float


def measure(
    contenders: dict[str, Callable[[], int]], n_rounds: int
) -> dict[str, Timing]:
    """Measures contenders in turn, after a round of warm-up."""
    best = dict.fromkeys(contenders, float("inf"))
    for number in range(n_rounds + 1):
        for name, contender in contenders.items():
            start = _cpu_s()
            n_images = contender()
            seconds = (_cpu_s() - start) / n_images
            if number:
                best[name] = min(best[name], seconds)
    return {
        name: Timing(round(1 / seconds, 1), round(1000 * seconds, 4))
        for name, seconds in best.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256, help="in a round")
    parser.add_argument("--rounds", type=int, default=7)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_shards(folder, N_PHOTOS, N_SAMPLES)
        view = make_view(folder)
        boxes = draw_boxes(view, flags.images)
        loaders = {
            "trainer": trainer_loader(view, flags.images),
            "trainer, 2 processes": trainer_loader(view, flags.images, 2),
            "trainer, decode and crops alone": views_alone(view, boxes),
            "tf.data": tensorflow_pipeline(folder, boxes),
            "pillow": lambda: pillow_rows(view, boxes),
        }
        found = measure(loaders, flags.rounds)
        parts = measure(stages(view, boxes), flags.rounds)
    speeds = {name: timing.images_per_cpu_s for name, timing in found.items()}
    result = {
        "images_per_cpu_s": speeds,
        "trainer_against": {
            name: round(speeds["trainer"] / speeds[name], 2)
            for name in ("tf.data", "pillow")
        },
        "cpu_ms_per_image": {n: timing.cpu_ms_per_image for n, timing in parts.items()},
        "images": flags.images,
        "rounds": flags.rounds,
        "cores": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
