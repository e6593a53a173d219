"""Depth from maps over bins, its loss and its error, in meters.

Pure functions. The bins are the released heads': 256 from 0.001 to 10 m. Their weights
are logits without the negative part, raised by the nearest depth and normalized.
Sources: google-deepmind/tips, `pytorch/decoders.py`; AdaBins, arXiv:2011.14141.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from trainer.evals.scores import errors

N_BINS = 256
Range = tuple[float, float]  # nearest and farthest, in meters
_VARIANCE_WEIGHT = 0.15  # of the squared mean, against the variance
_EPSILON = 1e-3
_NEAR_M = 0.25  # half of a set is hardly ever nearer
_N_LOOKED_AT = 64  # images


def expected_depth(
    logits: Float[Array, "*cells bins"], limits: Range
) -> Float[Array, "*cells"]:
    """Returns the weighted mean of the bins, in meters."""
    weights = jax.nn.relu(logits) + limits[0]
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return weights @ jnp.linspace(*limits, logits.shape[-1])


def loss(
    predicted: Float[Array, "b h w"], truth: Float[Array, "b h w"], limits: Range
) -> Float[Array, ""]:
    """Scale-invariant error of logarithms, over all known pixels of a batch.

    Source: Eigen et al. 2014, arXiv:1406.2283, with the weights of DINOv2's probes.
    """
    is_valid = (truth > limits[0]) & (truth <= limits[1])  # False for NaN
    n = jnp.maximum(is_valid.sum(), 1)
    ratio = jnp.log(predicted + _EPSILON) - jnp.log(
        jnp.where(is_valid, truth, 1) + _EPSILON
    )
    mean = jnp.where(is_valid, ratio, 0).sum() / n
    variance = jnp.where(is_valid, (ratio - mean) ** 2, 0).sum() / n
    return jnp.sqrt(variance + _VARIANCE_WEIGHT * mean**2 + 1e-12)


def error(
    predicted: Float[np.ndarray, "h w"], truth: Float[np.ndarray, "h w"], limits: Range
) -> errors.Errors:
    """Squared errors of the pixels whose true depth is known and within the limits."""
    is_valid = is_known(truth, limits)
    exact = truth[is_valid].astype(np.float64)
    return errors.summarize(predicted[is_valid] - exact)


def doubt_unit(truths: Float[np.ndarray, "n h w"], limits: Range) -> str:
    """Returns signs that depth is in another unit than meters; "" if there are none."""
    some = truths[:: max(1, len(truths) // _N_LOOKED_AT)]
    some = some[np.isfinite(some) & (some > 0)]
    if not some.size:
        return ""
    median, share = float(np.median(some)), float(is_known(some, limits).mean())
    if median >= _NEAR_M and share >= 0.5:
        return ""
    return (
        f"depth of training images: its median is {median:.3g} m, and {share:.0%} of it"
        f" within {limits[0]:g} to {limits[1]:g} m: is it in meters (.npy), or"
        " millimeters (.png)?"
    )


def is_known(truth: Float[np.ndarray, "*p"], limits: Range) -> Bool[np.ndarray, "*p"]:
    """True where depth is within the limits; False for NaN."""
    return (truth > limits[0]) & (truth <= limits[1])
