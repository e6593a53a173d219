"""Root mean square errors of maps, where the truth is known. Pure functions.

Two averages are in use. Depth and normals are scored image by image and averaged, as
users of NYUv2 and Probe3D do (arXiv:2404.08636); the other one weighs all pixels
equally.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64


class Errors(NamedTuple):
    """The errors of one image."""

    sum_of_squares: float
    n_pixels: int


def rmse(images: Sequence[Errors]) -> dict[str, float]:
    """Returns `rmse`, a mean over images, and `rmse_over_pixels`, of all pixels at
    once.

    Images without a known pixel do not count. Raises ValueError if there are no others.
    """
    known = [one for one in images if one.n_pixels]
    if not known:
        raise ValueError("no pixel with a known value")
    total = sum(one.sum_of_squares for one in known)
    n_pixels = sum(one.n_pixels for one in known)
    by_image = [(one.sum_of_squares / one.n_pixels) ** 0.5 for one in known]
    return {
        "rmse": float(np.mean(by_image)),
        "rmse_over_pixels": _root(total, n_pixels),
    }


def summarize(errors: Float64[np.ndarray, "n"]) -> Errors:
    """Sums up the errors of one image. Raises ValueError unless all are finite."""
    if not np.isfinite(errors).all():
        raise ValueError("predictions are not finite")
    return Errors(float((errors**2).sum()), len(errors))


def _root(total: float, count: int) -> float:
    return float((total / count) ** 0.5)
