"""Patch features as colors: three principal components as red, green and blue.

Pure functions. One basis and one scale serve all images, so that a color means the
same in each of them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

N_COMPONENTS = 3
_TAILS = (1, 99)  # percentiles that become 0 and 255: outliers do not dim the rest


class Basis(NamedTuple):
    """Directions of the largest variance, in order, and the range of values on them."""

    mean: Float[np.ndarray, "d"]
    vectors: Float[np.ndarray, "d 3"]
    low: Float[np.ndarray, "3"]
    high: Float[np.ndarray, "3"]


def fit_basis(features: Float[np.ndarray, "n gh gw d"]) -> Basis:
    """Fits the basis to all patches of all images. Raises ValueError unless all are
    finite.

    The sign of a component is arbitrary: here its largest entry is positive.
    """
    if not np.isfinite(features).all():
        raise ValueError("patch features are not finite")
    rows = features.reshape(-1, features.shape[-1]).astype(np.float64)
    mean = rows.mean(axis=0)
    rows -= mean
    _, vectors = np.linalg.eigh(rows.T @ rows)  # of rising variance
    vectors = vectors[:, : -N_COMPONENTS - 1 : -1]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, range(N_COMPONENTS)])
    low, high = np.percentile(rows @ vectors, _TAILS, axis=0)
    return Basis(mean, vectors, low, high)


def project(
    basis: Basis, features: Float[np.ndarray, "*cells d"]
) -> Float[np.ndarray, "*cells 3"]:
    """Projects features on the components."""
    return (features - basis.mean) @ basis.vectors


def to_colors(
    basis: Basis, features: Float[np.ndarray, "*cells d"]
) -> UInt8[np.ndarray, "*cells 3"]:
    """Maps components to RGB. A component without any range is 0."""
    spread = np.maximum(basis.high - basis.low, 1e-12)
    shares = (project(basis, features) - basis.low) / spread
    return np.round(255 * shares.clip(0, 1)).astype(np.uint8)
