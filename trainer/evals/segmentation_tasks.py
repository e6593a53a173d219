"""The segmentation tasks: every pixel gets a class by a decoder, or by names alone."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from trainer.evals.decoding import decoders, dense_tasks, dpt_heads
from trainer.evals.scores import maps
from trainer.evals.scores import segmentation as masks
from trainer.evals.scores import zero_shot_classification as prompting
from trainer.evals.scores import zero_shot_segmentation as zero_shot
from trainer.evals.sets.label_names import CLASSES
from trainer.evals.sets.samples import Sample, SampleError, errors_about
from trainer.evals.task_inputs import Evaluation, Task
from trainer.evaluation_config import PromptSet
from trainer.models import dpt


def linear_segmentation(run: Evaluation) -> dict:
    """Trains a linear probe on patches."""
    masked = _Masks(run, _names(run))
    views = dense_tasks.DecoderInputs(
        "mask", _patches, decoders.linear_cells, masked.cells
    )
    training = dense_tasks.read_training(run, views)
    seed = run.settings.rng_seed
    decoder = decoders.linear(training.features, len(masked.names), seed)
    predict = dense_tasks.fit_predictor(run, decoder, _cross_entropy, training)
    return _score_decoder(
        run, masked, dpt_heads.FittedHead(views, predict, training.n_images)
    )


def dpt_segmentation(run: Evaluation) -> dict:
    """Trains or reads a DPT head, like the released one for ADE20K."""
    masked = _Masks(run, _names(run))
    task = dpt_heads.HeadTask(
        kind="mask",
        truth=masked.cells,
        head=dpt.SEGMENTATION,
        n_outputs=len(masked.names),
        loss=_cross_entropy,
    )
    return _score_decoder(run, masked, dpt_heads.fit_head(run, task))


def zero_shot_segmentation(run: Evaluation) -> dict:
    """Scores `whole`, one pass over the image, and `windows`, a mean over windows."""
    names = _names(run)
    classes = name_vectors(run, names)
    modes = {"whole": segment_whole, "windows": _segment_windows}
    confusions = {mode: np.zeros((len(names),) * 2, np.int64) for mode in modes}
    masked, n_images = _Masks(run, names), 0
    for sample in run.show_progress(run.source.not_of_training("mask"), "images"):
        truth = masked.classes(sample)
        for mode, segment in modes.items():
            predicted = segment(run, sample, classes, truth.shape)
            confusions[mode] += masks.confusion(predicted, truth, len(names))
        n_images += 1
    if not n_images:
        raise run.source.no_samples_error("no images with mask")
    masked.warn()
    scores = {mode: _scores(run, found) for mode, found in confusions.items()}
    return {"n_images": n_images, "n_classes": len(names), **scores}


def name_vectors(run: Evaluation, names: Sequence[str]) -> Float[np.ndarray, "n d"]:
    """Returns one vector per name, from nine sentences with it."""
    sentences = prompting.prompts(names, PromptSet.TCL)
    texts = run.embed_texts(sentences).reshape(
        len(names), len(sentences) // len(names), -1
    )
    return prompting.class_features(texts)


def segment_whole(
    run: Evaluation, sample: Sample, classes: np.ndarray, shape: tuple[int, int]
) -> Int[np.ndarray, "h w"]:
    """Returns the class of each pixel of an image of `shape`, from one pass."""
    image = zero_shot.resize_short_side(sample.image(), run.size_px)
    image = zero_shot.round_up_to_patches(image, run.encoder.patch_px)
    (patches,) = run.encoder.values(run.params, image[None])
    return zero_shot.segment(patches, classes, shape)


def _segment_windows(
    run: Evaluation, sample: Sample, classes: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    image = zero_shot.resize_short_side(sample.image(), run.size_px)
    step = zero_shot.stride(run.size_px, run.encoder.patch_px)
    found = zero_shot.windows(image.shape[:2], run.size_px, step)
    parts = np.stack([image[window] for window in found])
    patches = list(run.encoder.values(run.params, parts))
    return zero_shot.segment_by_windows(
        patches, found, classes, resized=image.shape[:2], shape=shape
    )


def _score_decoder(
    run: Evaluation, masked: "_Masks", head: dpt_heads.FittedHead
) -> dict:
    """Scores a decoder of logits on the test images."""
    n_classes = len(masked.names)
    confusion = np.zeros((n_classes, n_classes), np.int64)
    n_images = 0
    for sample, cells in dense_tasks.predict_maps(run, head.views, head.predict):
        truth = masked.classes(sample)
        found = maps.best_class(cells, truth.shape)
        confusion += masks.confusion(found, truth, n_classes)
        n_images += 1
    masked.warn()
    sizes = dense_tasks.sizes(run, n_images, head.n_training_images)
    return sizes | _scores(run, confusion)


def _patches(run: Evaluation, images: np.ndarray) -> tuple[np.ndarray, ...]:
    return (run.encoder.patches(run.params, images).patches,)


def _names(run: Evaluation) -> tuple[str, ...]:
    place = run.source.place
    if not run.source.classes:
        raise SampleError(f"{place}: no {CLASSES}, expected names of mask values")
    with errors_about(place):
        return masks.class_names(run.source.classes)


class _Masks:
    """Masks as classes, and signs that their values are counted otherwise."""

    def __init__(self, run: Evaluation, names: tuple[str, ...]):
        self.names, self._run = names, run
        self._first = run.settings.masks_from
        self._pixels = np.zeros(len(names), np.int64)
        self._n_unlabeled = 0

    def classes(self, sample: Sample) -> Int[np.ndarray, "h w"]:
        mask = sample.mask()
        with errors_about(sample.name):
            found = masks.to_classes(mask, self.names, self._first)
        known = found[found != masks.IGNORED]
        self._pixels += np.bincount(known, minlength=len(self.names))
        self._n_unlabeled += int((mask == 0).sum())
        return found

    def cells(self, sample: Sample) -> Int[np.ndarray, "h w"]:
        return self.classes(sample).astype(np.int16)

    def warn(self) -> None:
        if masks.first_value(self.names, self._first) == 1 and self._first < 0:
            doubt = masks.doubt_first_value(self._pixels, self._n_unlabeled, self.names)
            if doubt:
                self._run.source.account.warn(doubt)


def _scores(run: Evaluation, confusion: np.ndarray) -> dict:
    with errors_about(run.source.place):
        return masks.scores(confusion, run.source.classes)


def _cross_entropy(
    logits: Float[Array, "b h w classes"], truth: Array
) -> Float[Array, ""]:
    """Nats, averaged over the cells that have a class."""
    is_known = truth != masks.IGNORED
    labels = jnp.where(is_known, truth, 0)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.where(is_known, nats, 0).sum() / jnp.maximum(is_known.sum(), 1)


TASKS = {
    "linear_segmentation": Task(linear_segmentation, is_trained=True),
    "dpt_segmentation": Task(dpt_segmentation, is_trained=True),
    "zero_shot_segmentation": Task(zero_shot_segmentation, reads_text=True),
}
