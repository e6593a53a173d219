"""The DPT head of a task: trained on frozen features, or read from a file."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from trainer.evals.decoding import decoders, dense_tasks
from trainer.evals.sets.samples import Sample, errors_about
from trainer.evals.task_inputs import Evaluation
from trainer.exchange import dpt_heads
from trainer.models.dpt import DptConfig


@dataclasses.dataclass(frozen=True)
class HeadTask:
    """What one kind of head predicts, and how it learns."""

    kind: str  # of the truth
    truth: Callable[[Sample], np.ndarray]
    head: str  # name of the last layer
    n_outputs: int
    loss: Callable
    finish: Callable[[Any], Any] = lambda maps: maps  # from the last layer to the map
    check: Callable[[dense_tasks.Training], None] = lambda training: None


class FittedHead(NamedTuple):
    """A head that is ready to predict."""

    views: dense_tasks.DecoderInputs
    predict: Callable[[Any], Any]
    n_training_images: int  # 0 of a head from a file


def fit_head(run: Evaluation, task: HeadTask) -> FittedHead:
    """Trains a head, or reads that of `dpt_from`; writes a trained one to `dpt_to`."""
    views = dense_tasks.DecoderInputs(
        task.kind, _levels, decoders.dpt_cells, task.truth
    )
    config = DptConfig(
        width=run.encoder.vision.width,
        head=task.head,
        n_outputs=task.n_outputs,
        channels=run.settings.dpt_channels,
    )
    decoder = _add_finish(decoders.dpt(config, run.settings.rng_seed), task.finish)
    source, target = run.settings.dpt_from, run.settings.dpt_to
    if source:
        with errors_about("dpt_from"):
            params = dpt_heads.read(pathlib.Path(source), config)
        predict = decoders.predictor(decoder._replace(params=params))
        return FittedHead(views, predict, 0)
    if target:
        with errors_about("dpt_to"):
            dpt_heads.check_name(pathlib.Path(target))
    training = dense_tasks.read_training(run, views)
    task.check(training)
    decoder = dense_tasks.train_decoder(run, decoder, task.loss, training)
    if target:
        with errors_about("dpt_to"):
            dpt_heads.write(pathlib.Path(target), decoder.params)
    return FittedHead(views, decoders.predictor(decoder), training.n_images)


def _add_finish(
    decoder: decoders.Decoder, finish: Callable[[Any], Any]
) -> decoders.Decoder:
    return decoder._replace(apply=lambda *x: finish(decoder.apply(*x)))


def _levels(run: Evaluation, images: np.ndarray) -> list:
    return run.encoder.levels(run.params, images)
