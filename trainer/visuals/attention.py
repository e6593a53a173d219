"""What CLS tokens attend to, as maps and as colors. Pure functions."""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

_COLORS = cv2.COLORMAP_INFERNO


def attention_maps(
    weights: Float[np.ndarray, "heads 2 t"], grid: tuple[int, int]
) -> Float[np.ndarray, "2 maps gh gw"]:
    """Returns, per CLS token, the mean over heads, then each head, over the patches.

    Patches are the last tokens, row by row from the top.
    """
    rows, columns = grid
    patches = weights[..., -rows * columns :].swapaxes(0, 1)
    both = np.concatenate([patches.mean(axis=1, keepdims=True), patches], axis=1)
    return both.reshape(*both.shape[:2], rows, columns)


def heat_map(weights: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Colors weights from black, which is 0, to pale yellow, the largest weight."""
    largest = max(float(weights.max()), np.finfo(np.float32).tiny)
    levels = np.round(255 * weights / largest).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, _COLORS), cv2.COLOR_BGR2RGB)
