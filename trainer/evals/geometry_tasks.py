"""The tasks on geometry: depth by a linear probe and by DPT, surface normals by DPT."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from trainer.evals import decoders, dense, depth, errors, features, maps, normals
from trainer.evals.evaluation import Evaluation
from trainer.evals.samples import Sample, SampleError, about
from trainer.models import dpt


def linear_depth(run: Evaluation) -> dict:
    """Patches joined with CLS 1, with CLS 2, and with their mean."""
    views = dense.Views("depth", _by_token, decoders.linear_cells, Sample.depth)
    training = dense.train_set(run, views)
    _check_depth(run, training)
    found = {}
    for token in features.TOKENS:
        own = dataclasses.replace(training, features=_joined(training.features, token))
        seed = run.settings.rng_seed
        decoder = decoders.linear(own.features, depth.N_BINS, seed)
        predict = dense.fit(run, _in_metres(run, decoder), _depth_loss(run), own)
        found[token] = lambda batch, t=token, p=predict: p(_joined(batch, t))
    return _depth_scores(run, views, found, training)


def dpt_depth(run: Evaluation) -> dict:
    """DPT reads CLS 1, as in the released heads."""
    views = dense.Views("depth", _levels, decoders.dpt_cells, Sample.depth)
    training = dense.train_set(run, views)
    _check_depth(run, training)
    decoder = _in_metres(run, _dpt(run, dpt.DEPTH, depth.N_BINS))
    predict = dense.fit(run, decoder, _depth_loss(run), training)
    return _depth_scores(run, views, {"cls_1": predict}, training)


def dpt_normals(run: Evaluation) -> dict:
    views = dense.Views("normals", _levels, decoders.dpt_cells, Sample.normals)
    training = dense.train_set(run, views)
    decoder = _dpt(run, dpt.NORMALS, 3)
    predict = dense.fit(run, decoder, normals.loss, training)
    found = []
    for sample, cells in dense.predicted(run, views, predict):
        truth = sample.normals()
        found.append(normals.error(maps.enlarge(cells, truth.shape[:2]), truth))
    return dense.sizes(run, len(found), training) | {"cls_1": _rmse(run, found)}


def _by_token(run: Evaluation, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = run.encoder.patches(run.params, images)
    return found.patches, found.cls


def _levels(run: Evaluation, images: np.ndarray) -> list:
    return run.encoder.levels(run.params, images)


def _joined(batch: tuple[Any, Any], token: str) -> tuple[Any, Any]:
    """Patches and one global vector."""
    patches, cls = batch
    return patches, features.by_token(np.asarray(cls, np.float32))[token]


def _dpt(run: Evaluation, head: str, n_outputs: int) -> decoders.Decoder:
    config = dpt.DptConfig(
        width=run.encoder.vision.width,
        head=head,
        n_outputs=n_outputs,
        channels=run.settings.dpt_channels,
    )
    return decoders.dpt(config, run.settings.rng_seed)


def _limits(run: Evaluation) -> depth.Range:
    return run.settings.min_depth_m, run.settings.max_depth_m


def _check_depth(run: Evaluation, training: dense.Training) -> None:
    near, far = _limits(run)
    if not depth.known(training.truths, (near, far)).any():
        raise SampleError(
            f"{run.source.place}: no depth from min_depth_m={near} to"
            f" max_depth_m={far} in the training images"
        )


def _in_metres(run: Evaluation, decoder: decoders.Decoder) -> decoders.Decoder:
    limits = _limits(run)
    return decoders.Decoder(
        decoder.params, lambda *x: depth.expected(decoder.apply(*x), limits)
    )


def _depth_loss(run: Evaluation) -> Callable:
    return functools.partial(depth.loss, limits=_limits(run))


def _depth_scores(
    run: Evaluation,
    views: dense.Views,
    predict: dict[str, Callable],
    training: dense.Training,
) -> dict:
    """Of several decoders, in one reading of the test images."""
    found: dict[str, list[errors.Errors]] = {token: [] for token in predict}

    def all_of(batch: Any) -> Iterator[tuple]:
        return zip(*(one(batch) for one in predict.values()), strict=True)

    n_images = 0
    for sample, by_token in dense.predicted(run, views, all_of):
        truth = sample.depth()
        for token, cells in zip(predict, by_token, strict=True):
            metres = maps.enlarge(cells, truth.shape)
            found[token].append(depth.error(metres, truth, _limits(run)))
        n_images += 1
    scores = {token: _rmse(run, one) for token, one in found.items()}
    return dense.sizes(run, n_images, training) | scores


def _rmse(run: Evaluation, found: list[errors.Errors]) -> dict[str, float]:
    with about(run.source.place):
        return errors.rmse(found)
