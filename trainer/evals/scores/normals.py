"""Surface normals: their loss, and their angular error in degrees. Pure functions.

Source: Probe3D, El Banani et al. 2024, arXiv:2404.08636.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from trainer.evals.scores import errors

_SMALLEST = 1e-6  # length of a vector that has a direction


def loss(
    predicted: Float[Array, "b h w 3"], truth: Float[Array, "b h w 3"]
) -> Float[Array, ""]:
    """One minus the cosine, averaged over known pixels. Vectors may have any length."""
    truth = jnp.nan_to_num(truth)
    lengths = jnp.linalg.norm(truth, axis=-1)
    is_valid = lengths > _SMALLEST
    # Not the norm itself, whose gradient at 0 is not a number.
    own = jnp.sqrt((predicted**2).sum(axis=-1) + _SMALLEST**2)
    cosines = (predicted * truth).sum(axis=-1) / (own * jnp.where(is_valid, lengths, 1))
    distances = jnp.where(is_valid, 1 - cosines, 0)
    return distances.sum() / jnp.maximum(is_valid.sum(), 1)


def error(
    predicted: Float[np.ndarray, "h w 3"], truth: Float[np.ndarray, "h w 3"]
) -> errors.Errors:
    """Degrees between the two directions, where the true one is known.

    A prediction of length 0 is 90 degrees off.
    """
    is_valid = is_known(truth)
    ours, theirs = _units(predicted[is_valid]), _units(truth[is_valid])
    cosines = np.clip((ours * theirs).sum(axis=-1), -1, 1)
    return errors.summarize(np.degrees(np.arccos(cosines)))


def is_known(truth: Float[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """True where the vector is finite and has a direction."""
    lengths = np.linalg.norm(truth, axis=-1)
    return (lengths > _SMALLEST) & (lengths < np.inf)  # False for NaN


def _units(vectors: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    vectors = vectors.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)
