"""Measures what each mode of retrieval finds among real photos.

Half of the photos of flowers are curated seeds; the other half lies in a pool with
photos of everything else. The image embeddings come from a small MobileNet in place of
an encoder. Prints a table: how many images each mode keeps, how many of them are
flowers, and how many of the flowers it finds.

    python -m benchmarks.photo_retrieval --data DATA

DATA holds `flowers/`, `imagenet-sample/` (images.parquet), `flickr8k/`, `coco-mini/`
(tars) and `weights/` with the TensorFlow Lite file.
"""

import argparse
import logging
import pathlib
import tempfile
from collections.abc import Iterator

import cv2
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.retrieval import write_tables
from pipeline import curate, records
from pipeline.config.curation import (
    CurationConfig,
    EncoderConfig,
    ImageTextSource,
    Limits,
)
from pipeline.config.selection import (
    NearestToSeeds,
    NearSeeds,
    Retrieval,
    SeededClusters,
    SelectionConfig,
)
from pipeline.engine.lot_plan import single
from pipeline.engine.run_folder import RunFolder
from pipeline.images import decoder as images
from pipeline.sources import shards
from pipeline.sources.shards import Shard

WEIGHTS = "weights/mobilenet_v1_1.0_224_quant_embedding_extractor.tflite"
OTHERS = ("imagenet-sample/*.parquet", "flickr8k/*.tar", "coco-mini/*.tar")
MODES: tuple[Retrieval, ...] = (
    *map(NearSeeds, (0.5, 0.6, 0.7, 0.8)),
    *map(NearestToSeeds, (1, 2, 4)),
    *(SeededClusters(n_clusters=n, min_seeds=4) for n in (16, 64, 256)),
)


class Embedder:
    """Maps an image to 1,024 numbers, by a TensorFlow Lite file for 224 x 224 uint8."""

    def __init__(self, path: pathlib.Path) -> None:
        import tensorflow as tf  # takes seconds

        self._model = tf.lite.Interpreter(str(path), num_threads=2)
        self._model.allocate_tensors()
        self._input = self._model.get_input_details()[0]["index"]
        self._output = self._model.get_output_details()[0]

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        resized = cv2.resize(rgb, (224, 224), interpolation=cv2.INTER_AREA)
        self._model.set_tensor(self._input, resized[None])
        self._model.invoke()
        found = self._model.get_tensor(self._output["index"]).ravel()
        scale, zero = self._output["quantization"]
        return ((found.astype(np.float32) - zero) * scale).astype(np.float16)


def photos(pattern: str) -> Iterator[np.ndarray]:
    """Yields the RGB pixels of all images of source shards."""
    source = ImageTextSource("photos", pattern, needs_alt_text=False)
    for lot in shards.list_shards(source):
        for pair in shards.read_pairs(lot, Limits()):
            yield images.decode(pair.image, Limits()).rgb


def retrieve(root: str, pool: np.ndarray, seeds: np.ndarray, mode: Retrieval):
    """Returns which rows of the pool a mode keeps: bool [n]."""
    web, curated = ImageTextSource("web", "web/*"), ImageTextSource("flowers", "f/*")
    lots, seed_lots = (single(Shard(web, "web/0")),), (single(Shard(curated, "f/0")),)
    config = CurationConfig(
        encoder=EncoderConfig("mobilenet"),
        selection=SelectionConfig(retrieval=mode),
        sources=(web,),
        seed_sets=(curated,),
    )
    run = RunFolder(root, config, lots, (), seed_lots, {"mobilenet": "mobilenet"})
    write_tables(run, lots[0], pool, 0)
    write_tables(run, seed_lots[0], seeds, len(pool))
    curate.select(run, PipelineOptions([]))
    outcome = run.decisions.read(lots[0].name, ["outcome"])["outcome"]
    return np.array(outcome.to_pylist()) == records.KEPT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    data = parser.parse_args().data
    logging.disable(logging.WARNING)
    embed = Embedder(data / WEIGHTS)
    flowers = np.stack([*map(embed, photos(f"{data}/flowers/*.parquet"))])
    others = [embed(rgb) for name in OTHERS for rgb in photos(f"{data}/{name}")]
    seeds, pool = flowers[::2], np.concatenate([flowers[1::2], np.stack(others)])
    is_flower = np.arange(len(pool)) < len(flowers[1::2])
    print(f"{len(seeds)} seeds, a pool of {len(pool)} with {is_flower.sum()} flowers\n")
    print("| mode | kept | precision | recall |\n| --- | --- | --- | --- |")
    for mode in MODES:
        with tempfile.TemporaryDirectory() as root:
            is_kept = retrieve(root, pool, seeds, mode)
        n_found = (is_kept & is_flower).sum()
        precision = n_found / max(is_kept.sum(), 1)
        recall = n_found / is_flower.sum()
        print(f"| {_name(mode)} | {is_kept.sum()} | {precision:.3f} | {recall:.3f} |")


def _name(mode: Retrieval) -> str:
    match mode:
        case NearSeeds(bound):
            return f"`NearSeeds({bound})`"
        case NearestToSeeds(k):
            return f"`NearestToSeeds(k={k})`"
        case SeededClusters(n):
            return f"`SeededClusters(n_clusters={n}, min_seeds=4)`"


if __name__ == "__main__":
    main()
