"""The geometry tasks: depth by a linear probe and by DPT, surface normals by DPT."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from trainer.evals.decoding import decoders, dense_tasks, dpt_heads
from trainer.evals.scores import depth, errors, features, maps, normals
from trainer.evals.sets.samples import Sample, SampleError, errors_about
from trainer.evals.task_inputs import Evaluation, Task
from trainer.models import dpt


def linear_depth(run: Evaluation) -> dict:
    """Probes patches joined with CLS 1, with CLS 2, and with their mean."""
    views = dense_tasks.DecoderInputs(
        "depth", _by_token, decoders.linear_cells, Sample.depth
    )
    training = dense_tasks.read_training(run, views)
    _check_depth(run, training)
    found = {}
    for token in features.TOKENS:
        own = dataclasses.replace(
            training, features=_join_token(training.features, token)
        )
        seed = run.settings.rng_seed
        decoder = decoders.linear(own.features, depth.N_BINS, seed)
        predict = dense_tasks.fit_predictor(
            run, _decode_meters(run, decoder), _depth_loss(run), own
        )
        found[token] = lambda batch, t=token, p=predict: p(_join_token(batch, t))
    return _depth_scores(run, views, found, training.n_images)


def dpt_depth(run: Evaluation) -> dict:
    """Trains or reads a DPT head, which reads CLS 1, as in the released heads."""
    task = dpt_heads.HeadTask(
        kind="depth",
        truth=Sample.depth,
        head=dpt.DEPTH,
        n_outputs=depth.N_BINS,
        loss=_depth_loss(run),
        finish=functools.partial(depth.expected_depth, limits=_limits(run)),
        check=functools.partial(_check_depth, run),
    )
    views, predict, n_training = dpt_heads.fit_head(run, task)
    return _depth_scores(run, views, {"cls_1": predict}, n_training)


def dpt_normals(run: Evaluation) -> dict:
    """Trains or reads a DPT head for surface normals; errors are in degrees."""
    task = dpt_heads.HeadTask(
        kind="normals",
        truth=Sample.normals,
        head=dpt.NORMALS,
        n_outputs=3,
        loss=normals.loss,
    )
    views, predict, n_training = dpt_heads.fit_head(run, task)
    found = []
    for sample, cells in dense_tasks.predict_maps(run, views, predict):
        truth = sample.normals()
        found.append(normals.error(maps.enlarge(cells, truth.shape[:2]), truth))
    return dense_tasks.sizes(run, len(found), n_training) | {"cls_1": _rmse(run, found)}


def _by_token(run: Evaluation, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = run.encoder.patches(run.params, images)
    return found.patches, found.cls


def _join_token(batch: tuple[Any, Any], token: str) -> tuple[Any, Any]:
    """Patches and one global vector."""
    patches, cls = batch
    return patches, features.by_token(np.asarray(cls, np.float32))[token]


def _limits(run: Evaluation) -> depth.Range:
    return run.settings.min_depth_m, run.settings.max_depth_m


def _check_depth(run: Evaluation, training: dense_tasks.Training) -> None:
    near, far = _limits(run)
    if not depth.is_known(training.truths, (near, far)).any():
        raise SampleError(
            f"{run.source.place}: no depth from min_depth_m={near} to"
            f" max_depth_m={far} in the training images"
        )
    if doubt := depth.doubt_unit(training.truths, (near, far)):
        run.source.account.warn(doubt)


def _decode_meters(run: Evaluation, decoder: decoders.Decoder) -> decoders.Decoder:
    limits = _limits(run)
    return decoders.Decoder(
        decoder.params, lambda *x: depth.expected_depth(decoder.apply(*x), limits)
    )


def _depth_loss(run: Evaluation) -> Callable:
    return functools.partial(depth.loss, limits=_limits(run))


def _depth_scores(
    run: Evaluation,
    views: dense_tasks.DecoderInputs,
    predict: dict[str, Callable],
    n_training_images: int,
) -> dict:
    """Scores several decoders in one pass over the test images."""
    found: dict[str, list[errors.Errors]] = {token: [] for token in predict}

    def all_of(batch: Any) -> Iterator[tuple]:
        return zip(*(one(batch) for one in predict.values()), strict=True)

    n_images = 0
    for sample, by_token in dense_tasks.predict_maps(run, views, all_of):
        truth = sample.depth()
        for token, cells in zip(predict, by_token, strict=True):
            meters = maps.enlarge(cells, truth.shape)
            found[token].append(depth.error(meters, truth, _limits(run)))
        n_images += 1
    scores = {token: _rmse(run, one) for token, one in found.items()}
    return dense_tasks.sizes(run, n_images, n_training_images) | scores


def _rmse(run: Evaluation, found: list[errors.Errors]) -> dict[str, float]:
    with errors_about(run.source.place):
        return errors.rmse(found)


TASKS = {
    "linear_depth": Task(linear_depth, is_trained=True),
    "dpt_depth": Task(dpt_depth, is_trained=True),
    "normals": Task(dpt_normals, is_trained=True),
}
