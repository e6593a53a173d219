"""Maps of a few cells, enlarged to the pixels of an image. Pure functions."""

import cv2
import numpy as np
from jaxtyping import Float, Int


def enlarge(
    cells: Float[np.ndarray, "gh gw *c"], shape: tuple[int, int]
) -> Float[np.ndarray, "h w *c"]:
    """Resizes bilinearly; centers of outer cells are half a cell from the edge."""
    return cv2.resize(cells, shape[::-1], interpolation=cv2.INTER_LINEAR)


def nearest(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns the value of the pixel under the center of each new one."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(shape, values.shape[:2], strict=True)
    )
    return values[rows[:, None], columns]


def best_class(
    cells: Float[np.ndarray, "gh gw classes"], shape: tuple[int, int]
) -> Int[np.ndarray, "h w"]:
    """Returns each pixel's class of the highest enlarged value; the first of equals.

    Works class by class: all of them at the size of a photo would take 150 times its
    memory. Raises ValueError unless all values are finite.
    """
    if not np.isfinite(cells).all():
        raise ValueError("predictions are not finite")
    best = np.full(shape, -np.inf, np.float32)
    found = np.zeros(shape, np.int16)
    for number in range(cells.shape[-1]):
        values = enlarge(np.ascontiguousarray(cells[..., number]), shape)
        np.copyto(found, number, where=values > best)
        np.maximum(best, values, out=best)
    return found
