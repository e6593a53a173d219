"""Feature vectors: normalized, and by the CLS token that they come from."""

import numpy as np
from jaxtyping import Float

TOKENS = ("cls_1", "cls_2", "mean")  # the vectors that an image has


def normalize(x: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Scales rows to length 1; zeros stay. Raises ValueError unless all are finite."""
    if not np.isfinite(x).all():
        raise ValueError("features are not finite")
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def by_token(cls: Float[np.ndarray, "n 2 d"]) -> dict[str, Float[np.ndarray, "n d"]]:
    """Returns the features of CLS 1, of CLS 2, and their mean after normalizing."""
    cls = normalize(cls)
    return {"cls_1": cls[:, 0], "cls_2": cls[:, 1], "mean": cls.mean(axis=1)}
