"""Random numbers in, the patches that are hidden from the student out."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from trainer.config import Masking

Mask = Bool[np.ndarray, "rows columns"]  # True = hidden

# Of the rectangles, as in DINOv2. BEiT's are of 16 patches or more.
_MIN_PATCHES = 4
_MIN_ASPECT = 0.3  # and its inverse

_N_RECTANGLES = 16  # at most
_DRAWS_PER_RECTANGLE = 4  # area, aspect, top, left


def n_draws(grid: tuple[int, int]) -> int:
    """Returns how many uniform numbers in [0, 1) a mask takes."""
    return _N_RECTANGLES * _DRAWS_PER_RECTANGLE + grid[0] * grid[1]


def draw_mask(
    masking: Masking,
    grid: tuple[int, int],
    ratio: float,
    draws: Float[np.ndarray, "draws"],
) -> Mask:
    """Hides exactly round(ratio x patches) patches. Takes `n_draws(grid)` draws.

    >>> draws = np.linspace(0, 1, n_draws((2, 4)), endpoint=False)
    >>> draw_mask(Masking.RANDOM, (2, 4), 0.75, draws).astype(int)
    array([[1, 1, 1, 1],
           [1, 1, 0, 0]])
    """
    n_hidden = round(ratio * grid[0] * grid[1])
    order, rectangles = np.split(draws, [grid[0] * grid[1]])
    if masking is Masking.RANDOM:
        return random_mask(grid, n_hidden, order)
    return block_mask(grid, n_hidden, order, rectangles.reshape(_N_RECTANGLES, -1))


def random_mask(
    grid: tuple[int, int], n_hidden: int, order: Float[np.ndarray, "patches"]
) -> Mask:
    """Hides the patches with the lowest draws."""
    mask = np.zeros(grid, bool)
    mask.flat[np.argsort(order, kind="stable")[:n_hidden]] = True
    return mask


def block_mask(
    grid: tuple[int, int],
    n_hidden: int,
    order: Float[np.ndarray, "patches"],
    rectangles: Float[np.ndarray, "rectangles 4"],
) -> Mask:
    """Hides rectangles, then single patches, up to exactly `n_hidden` patches.

    Source: BEiT, arXiv:2106.08254, algorithm 1, with DINOv2's bounds: a rectangle
    covers at most half of the patches, and at most the number that is still missing;
    single patches at random make up the rest. Rectangles lie inside the grid, so its
    middle is hidden more often than its corners.
    """
    mask = np.zeros(grid, bool)
    n_left = n_hidden
    for draws in rectangles.tolist():
        if not n_left:
            return mask
        part = mask[_rectangle(grid, n_left, draws)]
        n_new = part.size - int(np.count_nonzero(part))
        if n_new <= n_left:
            part[...] = True
            n_left -= n_new
    visible = np.flatnonzero(~mask)
    mask.flat[visible[np.argsort(order[visible], kind="stable")[:n_left]]] = True
    return mask


def _rectangle(
    grid: tuple[int, int], max_patches: int, draws: Sequence[float]
) -> tuple[slice, slice]:
    """A rectangle of uniform area, log-uniform aspect and uniform place."""
    most = min(max_patches, max(1, grid[0] * grid[1] // 2))
    least = min(_MIN_PATCHES, most)
    area = least + draws[0] * (most - least)
    aspect = _MIN_ASPECT ** (1 - 2 * draws[1])  # height / width
    height = min(grid[0], max(1, round((area * aspect) ** 0.5)))
    width = min(grid[1], max(1, round((area / aspect) ** 0.5)))
    top = int(draws[2] * (grid[0] - height + 1))
    left = int(draws[3] * (grid[1] - width + 1))
    return slice(top, top + height), slice(left, left + width)
