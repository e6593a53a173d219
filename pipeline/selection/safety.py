"""Unsafe images, which must not be used because of what they show.

In: a linear head on the image embeddings of the run's encoder, an `.npz` file with
`weight` [d] and `bias`, one number. For an embedding x of length one, the probability
of an unsafe image is sigmoid(weight . x + bias). A logistic regression on embeddings
has this form, and so has the difference of the embeddings of two texts. The transform
maps PCollection[LotDecisions] to PCollection[LotDecisions].
"""

import dataclasses
import io
import zipfile
from typing import Self

import apache_beam as beam
import numpy as np

from pipeline.config.selection import SafetyHead
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection.lot_decisions import LotDecisions
from pipeline.selection.search.embeddings import embedding_dim, read_vector_blocks
from pipeline.storage import files


@dataclasses.dataclass(frozen=True, eq=False)
class LinearHead:
    """A linear classifier of embeddings."""

    weight: np.ndarray  # float64 [d]
    bias: float

    @classmethod
    def load(cls, path: str) -> Self:
        """Reads a head from an `.npz` file.

        Raises:
          ValueError: if the file does not hold one.
        """
        try:
            with np.load(io.BytesIO(files.read(path)), allow_pickle=False) as arrays:
                weight = np.asarray(arrays["weight"], np.float64)
                bias = np.asarray(arrays["bias"], np.float64)
        except (AttributeError, EOFError, KeyError, OSError, TypeError) as error:
            raise _not_a_head(path, error) from error
        except (ValueError, zipfile.BadZipFile) as error:
            raise _not_a_head(path, error) from error
        is_vector = weight.ndim == 1 or (weight.ndim == 2 and len(weight) == 1)
        if not is_vector or not weight.size or bias.size != 1:
            shapes = f"shapes {weight.shape} and {bias.shape}"
            raise _not_a_head(path, shapes)
        if not np.isfinite([*weight.flat, *bias.flat]).all():
            raise _not_a_head(path, "some are not finite")
        return cls(weight.ravel(), bias.item())

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """Probabilities of unit vectors [n, d]: float32 [n], the same in any batch."""
        logits = np.einsum("nd,d->n", vectors.astype(np.float64), self.weight)
        return (1 / (1 + np.exp(-(logits + self.bias).clip(-700, 700)))).astype("f4")


class DropUnsafe(beam.PTransform):
    """Drops unsafe images, including those of `keep_all` sources.

    Raises ValueError when applied if the file holds no head.
    """

    def __init__(self, run: RunFolder, safety: SafetyHead | None) -> None:
        super().__init__()
        self._run = run
        self._safety = safety

    def expand(self, decisions: beam.PCollection[LotDecisions]) -> beam.PCollection:
        if self._safety is None:
            return decisions
        head = LinearHead.load(self._safety.head)
        bound = self._safety.max_probability
        return decisions | "Drop above bound" >> beam.Map(
            drop_unsafe, self._run, head, bound
        )


def drop_unsafe(
    decisions: LotDecisions, run: RunFolder, head: LinearHead, max_probability: float
) -> LotDecisions:
    """Drops pairs above `max_probability`, and pairs without an embedding."""
    rows = decisions.kept_rows
    probabilities = np.full(len(rows), np.nan)
    for embedded, vectors in read_vector_blocks(run, decisions, rows):
        found = head.probabilities(vectors)
        probabilities[np.searchsorted(rows, embedded)] = found
    fails = ~(probabilities <= np.float32(max_probability))
    return decisions.drop(
        rows[fails],
        DropReason.UNSAFE_IMAGE,
        value=probabilities[fails],
        threshold=max_probability,
        detail=np.where(np.isnan(probabilities[fails]), "no embedding", ""),
    )


def check(run: RunFolder) -> None:
    """Raises ValueError if the file holds no head for the embeddings of the run.

    Their width is known once the first shard of the pool is scored.
    """
    safety = run.config.selection.safety
    if safety is None:
        return
    n_found = len(LinearHead.load(safety.head).weight)
    n_expected = embedding_dim(run)
    if n_expected is not None and n_found != n_expected:
        raise ValueError(
            f"head={safety.head!r}: {n_found} weights, expected {n_expected}, one per"
            " dimension of the embeddings"
        )


def _not_a_head(path: str, found: object) -> ValueError:
    return ValueError(
        f"head={path!r}: expected an .npz file with numbers `weight` [d] and `bias`:"
        f" {found}"
    )
