"""What all tasks on patches share: a decoder trained on some images, used on others.

Decoders see images in squares, whole. Their maps are scored at the size of each image,
to which the tasks enlarge them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from trainer.evals.decoding import decoders
from trainer.evals.scores import maps
from trainer.evals.sets.samples import Sample, SampleError
from trainer.evals.task_inputs import Evaluation, chunks, spool
from trainer.split_names import TEST, TRAIN

_CHUNK = 16  # images whose features are held at a time

Maps = Float[np.ndarray, "b h w *c"]
Encode = Callable[[Evaluation, np.ndarray], Any]


@dataclasses.dataclass(frozen=True)
class Views:
    """What a decoder is shown, and what it has to tell."""

    kind: str  # of the truth; samples without it are left out
    encode: Encode
    n_cells: Callable[[int], int]  # patches along a side to cells of the map
    truth: Callable[[Sample], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Training:
    """What a decoder learns from: features and truths of the training images."""

    features: Any
    truths: np.ndarray

    @property
    def n_images(self) -> int:
        return len(self.truths)


def train_set(run: Evaluation, views: Views) -> Training:
    """Truths at the size of the decoder's map, by the nearest pixel."""
    side = views.n_cells(-(-run.size_px // run.encoder.patch_px))

    def rows() -> Iterator[tuple[Any, np.ndarray]]:
        samples = run.shown(_known(run, views, TRAIN), "training images")
        for chunk in chunks(samples, _CHUNK):
            truths = [maps.nearest(views.truth(one), (side, side)) for one in chunk]
            yield views.encode(run, run.squeezed(chunk)), np.stack(truths)

    return Training(*spool(rows(), functools.partial(_nothing, run, views, "training")))


def fit(
    run: Evaluation,
    decoder: decoders.Decoder,
    loss: Callable,
    training: Training,
) -> Callable[[Any], Maps]:
    return decoders.predictor(trained(run, decoder, loss, training))


def trained(
    run: Evaluation,
    decoder: decoders.Decoder,
    loss: Callable,
    training: Training,
) -> decoders.Decoder:
    shown = functools.partial(run.shown, what="training steps")
    return decoders.fit(
        decoder, loss, training.features, training.truths, run.settings, shown
    )


def predicted(
    run: Evaluation, views: Views, predict: Callable[[Any], Any]
) -> Iterator[tuple[Sample, Any]]:
    """Test images with their maps."""
    n_images = 0
    samples = run.shown(_known(run, views, TEST), "test images")
    for chunk in chunks(samples, _CHUNK):
        images = run.squeezed(chunk)
        filled = np.concatenate([images, images[:1].repeat(_CHUNK - len(chunk), 0)])
        yield from zip(chunk, predict(views.encode(run, filled)), strict=False)
        n_images += len(chunk)
    if not n_images:
        raise _nothing(run, views, "test")


def sizes(run: Evaluation, n_images: int, n_training_images: int) -> dict:
    return {
        "n_images": n_images,
        "n_training_images": n_training_images,
        "size_px": run.size_px,
    }


def _known(run: Evaluation, views: Views, split: str) -> Iterator[Sample]:
    return run.source.of(split, views.kind)


def _nothing(run: Evaluation, views: Views, what: str) -> SampleError:
    return run.source.nothing(f"no {what} images with {views.kind}")
