"""What all tasks on patches share: a decoder trained on some images, used on others.

Decoders see whole images, squeezed into squares. Their maps are scored at the size of
each image, to which the tasks enlarge them.
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
class DecoderInputs:
    """The features that a decoder reads, and the truth that it is to predict."""

    kind: str  # of the truth; samples without it are left out
    encode: Encode
    n_cells: Callable[[int], int]  # patches along a side to cells of the map
    truth: Callable[[Sample], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Training:
    """Features and truths of the training images."""

    features: Any
    truths: np.ndarray

    @property
    def n_images(self) -> int:
        """The number of training images."""
        return len(self.truths)


def read_training(run: Evaluation, views: DecoderInputs) -> Training:
    """Reads features and truths, at the size of the decoder's map."""
    side = views.n_cells(-(-run.size_px // run.encoder.patch_px))

    def rows() -> Iterator[tuple[Any, np.ndarray]]:
        samples = run.show_progress(
            _samples_with_truth(run, views, TRAIN), "training images"
        )
        for chunk in chunks(samples, _CHUNK):
            truths = [maps.nearest(views.truth(one), (side, side)) for one in chunk]
            yield views.encode(run, run.squeeze_images(chunk)), np.stack(truths)

    return Training(
        *spool(rows(), functools.partial(_no_samples_error, run, views, "training"))
    )


def fit_predictor(
    run: Evaluation,
    decoder: decoders.Decoder,
    loss: Callable,
    training: Training,
) -> Callable[[Any], Maps]:
    """Trains a decoder, and returns its compiled function from features to maps."""
    return decoders.predictor(train_decoder(run, decoder, loss, training))


def train_decoder(
    run: Evaluation,
    decoder: decoders.Decoder,
    loss: Callable,
    training: Training,
) -> decoders.Decoder:
    """Trains a decoder with the settings of the evaluation."""
    shown = functools.partial(run.show_progress, what="training steps")
    return decoders.fit(
        decoder, loss, training.features, training.truths, run.settings, shown
    )


def predict_maps(
    run: Evaluation, views: DecoderInputs, predict: Callable[[Any], Any]
) -> Iterator[tuple[Sample, Any]]:
    """Yields test images with their maps. Raises SampleError if there are none."""
    n_images = 0
    samples = run.show_progress(_samples_with_truth(run, views, TEST), "test images")
    for chunk in chunks(samples, _CHUNK):
        images = run.squeeze_images(chunk)
        filled = np.concatenate([images, images[:1].repeat(_CHUNK - len(chunk), 0)])
        yield from zip(chunk, predict(views.encode(run, filled)), strict=False)
        n_images += len(chunk)
    if not n_images:
        raise _no_samples_error(run, views, "test")


def sizes(run: Evaluation, n_images: int, n_training_images: int) -> dict:
    """The sizes that every result on patches has."""
    return {
        "n_images": n_images,
        "n_training_images": n_training_images,
        "size_px": run.size_px,
    }


def _samples_with_truth(
    run: Evaluation, views: DecoderInputs, split: str
) -> Iterator[Sample]:
    return run.source.of_split(split, views.kind)


def _no_samples_error(run: Evaluation, views: DecoderInputs, what: str) -> SampleError:
    return run.source.no_samples_error(f"no {what} images with {views.kind}")
