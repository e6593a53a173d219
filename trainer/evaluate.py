"""Measures a checkpoint, and prints one JSON object on standard output.

    python -m trainer.evaluate --checkpoint WORKDIR --task NAME --data PATH

Tasks: `zero_shot_classification` (samples need a label) and `retrieval` (samples need
captions). Each is reported for CLS 1, for CLS 2 and for their mean. Images are squeezed
into a square whole, since cutting would take away what captions speak of.
"""

import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Sharding
from jaxtyping import Array, Float, UInt8

from trainer import cli, trained
from trainer.evals import classification, features, retrieval, samples
from trainer.models import two_tower
from trainer.tokenizer import Tokenizer

_BATCH_SIZE = 64


class Encoder:
    """Turns images and texts into features; compiles once for each of them.

    With several processes `place` puts the features on devices of each of them.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        tokenizer: Tokenizer,
        size_px: int,
        place: Sharding | None = None,
    ):
        self.size_px = size_px
        self._tokenizer = tokenizer
        self._images = jax.jit(
            lambda params, image: nnx.merge(graph, params).encode_image(image).cls,
            out_shardings=place,
        )
        self._texts = jax.jit(
            lambda params, ids: nnx.merge(graph, params).encode_text(ids),
            out_shardings=place,
        )

    def images(
        self, params: dict, images: UInt8[np.ndarray, "n h w 3"]
    ) -> Float[np.ndarray, "n 2 d"]:
        return _in_batches(self._images, params, images)

    def texts(self, params: dict, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        return _in_batches(self._texts, params, self._tokenizer(texts))


def run(task: str, encoder: Encoder, params: dict, data: str) -> dict:
    """One task on one evaluation set: nested numbers, all shares in [0, 1].

    Raises SampleError when no sample has what the task needs.
    """
    found = samples.read(samples.find_tars(data), encoder.size_px)
    cls, truths = _embed(encoder, params, found)
    return TASKS[task](encoder, params, cls, truths)


def run_all(evaluations: Mapping[str, str], encoder: Encoder, params: dict) -> dict:
    """All of task -> data, as flat `task/.../number` for the training log."""
    results = {
        task: run(task, encoder, params, data) for task, data in evaluations.items()
    }
    return dict(_flat(results))


def check_tasks(evaluations: Mapping[str, str]) -> None:
    """Raises ValueError on an unknown task or data that is not there."""
    for task, data in evaluations.items():
        if task not in TASKS:
            raise ValueError(f"evaluation {task}: expected one of {', '.join(TASKS)}")
        samples.find_tars(data)


def _zero_shot_classification(
    encoder: Encoder,
    params: dict,
    cls: Float[np.ndarray, "n 2 d"],
    truths: Sequence[samples.Truth],
) -> dict:
    rows = [row for row, truth in enumerate(truths) if truth.label]
    labels = [truth.label for truth in truths if truth.label]
    names = sorted(set(labels))
    if len(names) < 2:
        raise samples.SampleError(f"{len(names)} different labels, expected at least 2")
    prompts = [prompt.format(n) for n in names for prompt in classification.PROMPTS]
    texts = encoder.texts(params, prompts).reshape(len(names), -1, cls.shape[-1])
    classes = classification.class_features(texts)
    numbers = np.array([names.index(label) for label in labels])
    accuracies = {
        token: {"accuracy": classification.accuracy(images, classes, numbers)}
        for token, images in features.by_token(cls[rows]).items()
    }
    return {"n_images": len(rows), "n_classes": len(names), **accuracies}


def _retrieval(
    encoder: Encoder,
    params: dict,
    cls: Float[np.ndarray, "n 2 d"],
    truths: Sequence[samples.Truth],
) -> dict:
    """Every granularity by itself: names of things match many images, sentences few."""
    granularities = sorted({name for truth in truths for name in truth.captions})
    if not granularities:
        raise samples.SampleError("no captions, expected some in KEY.json or KEY.txt")
    captions = {
        name: [truth.captions.get(name, ()) for truth in truths]
        for name in granularities
    }
    return {
        name: _retrieval_of(encoder, params, cls, texts)
        for name, texts in captions.items()
    }


def _retrieval_of(
    encoder: Encoder,
    params: dict,
    cls: Float[np.ndarray, "n 2 d"],
    captions: Sequence[tuple[str, ...]],
) -> dict:
    """Among the images that have captions."""
    rows = [row for row, texts in enumerate(captions) if texts]
    texts = [text for row in rows for text in captions[row]]
    counts = [len(captions[row]) for row in rows]
    text_to_image = np.repeat(np.arange(len(rows)), counts)
    text_features = encoder.texts(params, texts)
    recalls = {
        token: retrieval.recalls(images, text_features, text_to_image)
        for token, images in features.by_token(cls[rows]).items()
    }
    return {"n_images": len(rows), "n_texts": len(texts), **recalls}


TASKS: Mapping[str, Callable[..., dict]] = {
    "zero_shot_classification": _zero_shot_classification,
    "retrieval": _retrieval,
}


def _embed(
    encoder: Encoder,
    params: dict,
    found: Iterator[tuple[UInt8[np.ndarray, "h w 3"], samples.Truth]],
) -> tuple[Float[np.ndarray, "n 2 d"], list[samples.Truth]]:
    """Image features and truths, holding one batch of images at a time."""
    cls: list[np.ndarray] = []
    truths: list[samples.Truth] = []
    while chunk := list(itertools.islice(found, _BATCH_SIZE)):
        cls.append(encoder.images(params, np.stack([image for image, _ in chunk])))
        truths.extend(truth for _, truth in chunk)
    if not truths:
        raise samples.SampleError("no image in the evaluation set")
    return np.concatenate(cls), truths


def _in_batches(
    encode: Callable[[dict, np.ndarray], Array], params: dict, rows: np.ndarray
) -> np.ndarray:
    """Encodes in batches of one size, so that there is one compilation."""
    padding = np.zeros((-len(rows) % _BATCH_SIZE, *rows.shape[1:]), rows.dtype)
    padded = np.concatenate([rows, padding])
    starts = range(0, len(padded), _BATCH_SIZE)
    parts = [encode(params, padded[i : i + _BATCH_SIZE]) for i in starts]
    return np.concatenate(jax.device_get(parts))[: len(rows)]


def _flat(results: Mapping, prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in results.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def load(checkpoint: pathlib.Path, step: int | None) -> tuple[Encoder, dict, int]:
    """Encoder, parameters and step of a workdir, or of one of its checkpoints.

    Of a workdir it is the latest step unless `step` names another.
    """
    found = trained.find(checkpoint, step)
    config = found.config
    tokenizer = Tokenizer(config.data.tokenizer, config.model.text.max_tokens)
    shapes = two_tower.abstract_params(config.model)
    params = found.params(shapes)
    graph = two_tower.graph(config.model, compute=config.compute)
    return (
        Encoder(graph, tokenizer, config.data.global_crop.size_px),
        params,
        found.step,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = cli.Parser(
        prog="python -m trainer.evaluate",
        description="Measures a checkpoint; prints one JSON object.",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=pathlib.Path,
        metavar="DIR",
        help="a workdir of trainer.train, or WORKDIR/checkpoints/STEP",
    )
    parser.add_argument("--task", required=True, choices=list(TASKS))
    parser.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="folder, file or glob of img2dataset-style tars",
    )
    parser.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="which checkpoint; 0 is the untrained model (default: the latest)",
    )
    flags = parser.parse_args(arguments)
    with cli.exits(cli.WRONG_USAGE, ValueError):
        samples.find_tars(flags.data)
        encoder, params, step = load(flags.checkpoint, flags.step)
    with cli.exits(cli.FAILED, samples.SampleError):
        results = run(flags.task, encoder, params, flags.data)
    json.dump({"task": flags.task, "step": step, **results}, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
