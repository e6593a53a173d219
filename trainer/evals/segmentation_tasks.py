"""The tasks that give every pixel a class: by a decoder, and by names alone."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from trainer.evals import decoders, dense, dpt_heads, maps
from trainer.evals import segmentation as masks
from trainer.evals import zero_shot_classification as prompting
from trainer.evals import zero_shot_segmentation as zero_shot
from trainer.evals.evaluation import Evaluation
from trainer.evals.samples import Sample, SampleError, about
from trainer.evals.settings import PromptSet
from trainer.evals.sources import CLASSES
from trainer.models import dpt


def linear_segmentation(run: Evaluation) -> dict:
    names = _names(run)
    truth_of = functools.partial(_truth, names=names)
    views = dense.Views("mask", _patches, decoders.linear_cells, truth_of)
    training = dense.train_set(run, views)
    seed = run.settings.rng_seed
    decoder = decoders.linear(training.features, len(names), seed)
    predict = dense.fit(run, decoder, _cross_entropy, training)
    return _decoded(run, views, predict, training.n_images)


def dpt_segmentation(run: Evaluation) -> dict:
    """With a head like the released one for the 150 classes of ADE20K."""
    names = _names(run)
    task = dpt_heads.Task(
        kind="mask",
        truth=functools.partial(_truth, names=names),
        head=dpt.SEGMENTATION,
        n_outputs=len(names),
        loss=_cross_entropy,
    )
    return _decoded(run, *dpt_heads.fitted(run, task))


def zero_shot_segmentation(run: Evaluation) -> dict:
    """`whole`: one look at the image; `windows`: averaged over windows of it."""
    names = _names(run)
    classes = named_classes(run, names)
    modes = {"whole": by_whole, "windows": _by_windows}
    confusions = {mode: np.zeros((len(names),) * 2, np.int64) for mode in modes}
    n_images = 0
    for sample in run.shown(_with_mask(run.source.not_of_training()), "images"):
        truth = _classes(sample, names)
        for mode, segment in modes.items():
            predicted = segment(run, sample, classes, truth.shape)
            confusions[mode] += masks.confusion(predicted, truth, len(names))
        n_images += 1
    scores = {mode: _scores(run, found) for mode, found in confusions.items()}
    return {"n_images": n_images, "n_classes": len(names), **scores}


def named_classes(run: Evaluation, names: Sequence[str]) -> Float[np.ndarray, "n d"]:
    """A vector for each name, from nine sentences with it."""
    sentences = prompting.prompts(names, PromptSet.TCL)
    texts = run.texts(sentences).reshape(len(names), len(sentences) // len(names), -1)
    return prompting.class_features(texts)


def by_whole(
    run: Evaluation, sample: Sample, classes: np.ndarray, shape: tuple[int, int]
) -> Int[np.ndarray, "h w"]:
    """The class of each pixel of an image of `shape`, in one look."""
    image = zero_shot.short_side_resized(sample.image(), run.size_px)
    image = zero_shot.rounded_up(image, run.encoder.patch_px)
    (patches,) = run.encoder.values(run.params, image[None])
    return zero_shot.segment(patches, classes, shape)


def _by_windows(
    run: Evaluation, sample: Sample, classes: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    image = zero_shot.short_side_resized(sample.image(), run.size_px)
    step = zero_shot.stride(run.size_px, run.encoder.patch_px)
    found = zero_shot.windows(image.shape[:2], run.size_px, step)
    parts = np.stack([image[window] for window in found])
    patches = list(run.encoder.values(run.params, parts))
    return zero_shot.segment_by_windows(
        patches, found, classes, resized=image.shape[:2], shape=shape
    )


def _decoded(
    run: Evaluation,
    views: dense.Views,
    predict: Callable[[Any], Any],
    n_training_images: int,
) -> dict:
    """What a decoder of logits scores on the test images."""
    names = _names(run)
    confusion = np.zeros((len(names), len(names)), np.int64)
    n_images = 0
    for sample, cells in dense.predicted(run, views, predict):
        truth = _classes(sample, names)
        found = maps.best_class(cells, truth.shape)
        confusion += masks.confusion(found, truth, len(names))
        n_images += 1
    return dense.sizes(run, n_images, n_training_images) | _scores(run, confusion)


def _patches(run: Evaluation, images: np.ndarray) -> tuple[np.ndarray, ...]:
    return (run.encoder.patches(run.params, images).patches,)


def _names(run: Evaluation) -> tuple[str, ...]:
    place = run.source.place
    if not run.source.classes:
        raise SampleError(f"{place}: no {CLASSES}, expected names of mask values")
    with about(place):
        return masks.class_names(run.source.classes)


def _classes(sample: Sample, names: tuple[str, ...]) -> np.ndarray:
    with about(sample.name):
        return masks.to_classes(sample.mask(), names)


def _truth(sample: Sample, names: tuple[str, ...]) -> np.ndarray:
    return _classes(sample, names).astype(np.int16)


def _scores(run: Evaluation, confusion: np.ndarray) -> dict:
    with about(run.source.place):
        return masks.scores(confusion, run.source.classes)


def _with_mask(samples: Iterator[Sample]) -> Iterator[Sample]:
    return (sample for sample in samples if "mask" in sample.parts)


def _cross_entropy(
    logits: Float[Array, "b h w classes"], truth: Array
) -> Float[Array, ""]:
    """Nats, averaged over the cells that have a class."""
    is_known = truth != masks.IGNORED
    labels = jnp.where(is_known, truth, 0)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.where(is_known, nats, 0).sum() / jnp.maximum(is_known.sum(), 1)
