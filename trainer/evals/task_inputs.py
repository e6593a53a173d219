"""What a task gets: encoders, an evaluation set, settings; and what a task is.

Images go through the encoder in chunks, which bounds the memory for them. Several
processes divide their decoding.
"""

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Float, UInt8

from recipes import progress_bar
from trainer.distributed import processes
from trainer.evals.frozen_encoder import Encoder
from trainer.evals.sets.readers import Source
from trainer.evals.sets.samples import Sample, SampleError
from trainer.evaluation_config import EvaluationConfig

CHUNK = 64  # images held at a time
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The inputs of a task."""

    encoder: Encoder
    params: dict
    source: Source
    settings: EvaluationConfig
    is_shown: bool = False  # progress, on standard error

    @property
    def size_px(self) -> int:
        """The side of the images, in pixels."""
        return self.settings.size_px or self.encoder.size_px

    def show_progress(self, rows: Iterable[T], what: str) -> Iterator[T]:
        """The same rows, counted on standard error if `is_shown`."""
        return progress_bar.count(rows, what) if self.is_shown else iter(rows)

    def embed(
        self, samples: Iterable[Sample], what: str = "images", missing: str = ""
    ) -> tuple[Float[np.ndarray, "n 2 d"], list[Sample]]:
        """Returns both CLS tokens of each image, and the samples without their images.

        Raises SampleError, which says what is `missing`, if there is no sample.
        """
        cls: list[np.ndarray] = []
        kept: list[Sample] = []
        # So that each of many processes has some images to decode.
        size = max(CHUNK, 8 * jax.process_count())
        for chunk in chunks(self.show_progress(samples, what), size):
            cls.append(self.encoder.images(self.params, self.squeeze_images(chunk)))
            kept.extend(sample.without_parts() for sample in chunk)
        if not kept:
            raise self.source.no_samples_error(missing or f"no {what}")
        return np.concatenate(cls), kept

    def squeeze_images(
        self, samples: Sequence[Sample]
    ) -> UInt8[np.ndarray, "n size size 3"]:
        """Decodes in parallel; with a small encoder decoding takes most of the time.

        Each of several processes decodes its part of the samples, and gets all images.
        Raises SampleError, on every process, if one cannot be decoded.
        """
        if jax.process_count() == 1:
            return self._decode(samples)
        own, raised = np.zeros((0, self.size_px, self.size_px, 3), np.uint8), None
        try:
            if rows := processes.own_rows(samples):
                own = self._decode(rows)
        except SampleError as error:  # the others would wait for these rows
            raised = error
        if processes.is_everywhere(raised is None):
            return processes.join_rows(own, len(samples))
        raise raised or SampleError("an image that another process decodes is broken")

    def _decode(self, samples: Sequence[Sample]) -> UInt8[np.ndarray, "n size size 3"]:
        with futures.ThreadPoolExecutor() as pool:
            images = pool.map(lambda sample: sample.to_square(self.size_px), samples)
            return np.stack(list(images))

    def embed_texts(self, texts: list[str]) -> Float[np.ndarray, "n d"]:
        """Returns one vector per text, not normalized."""
        return self.encoder.texts(self.params, texts)


@dataclasses.dataclass(frozen=True)
class Task:
    """A way to evaluate an encoder, and what it needs of the checkpoint and the data.

    `measure` returns nested dictionaries of numbers: shares in [0, 1], errors in meters
    or degrees. It raises SampleError, with one line for the user, on data that lack
    what it needs.
    """

    measure: Callable[[Evaluation], dict]
    is_trained: bool = False  # on training images, so splits must be known
    reads_text: bool = False  # needs the text encoder


def chunks(samples: Iterable[Sample], size: int = CHUNK) -> Iterator[list[Sample]]:
    """Yields lists of up to `size` samples."""
    iterator = iter(samples)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def spool(chunks: Iterable[Any], otherwise: Callable[[], SampleError]) -> Any:
    """Joins chunks of many rows into arrays that are mapped from temporary files.

    Each chunk is a tree of arrays; so is the result. Patches of a data set are larger
    than memory: a megabyte per image for a width of 1024 at 448 pixels, in float16.
    TMPDIR says where the files go. Raises `otherwise` if there is no chunk.
    """
    iterator = iter(chunks)
    first = next(iterator, None)
    if first is None:
        raise otherwise()
    leaves, structure = jax.tree.flatten(first)
    # Not closed here: the arrays lie in them.
    files = [tempfile.TemporaryFile() for _ in leaves]  # noqa: SIM115
    for chunk in itertools.chain([first], iterator):
        for file, rows in zip(files, jax.tree.leaves(chunk), strict=True):
            file.write(np.ascontiguousarray(rows).data)
    arrays = [
        np.memmap(_flush(file), rows.dtype, "r").reshape(-1, *rows.shape[1:])
        for file, rows in zip(files, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, arrays)


def _flush(file: Any) -> Any:
    file.flush()
    return file
