"""The cells of the pool in which an image is compared with others.

A cell holds the images that are nearest to one centroid of k-means. In: vectors and
centroids, both on the grid of `to_grid`. Out: pairs of image and cell, one of which is
the image's own cell. They are the same on every machine and in every order of work.
"""

import math

import numpy as np

_GRID = 4000  # steps to one: products of two unit vectors stay below 2^24
_PRODUCTS_PER_BLOCK = 2**21  # 8 MB of float32, several times: stays near a cache


def to_grid(vectors: np.ndarray) -> np.ndarray:
    """Rounds unit vectors to whole steps of 1 / 4000: float32 [n, d].

    Single precision holds the products of such vectors and all their partial sums
    exactly, so they do not depend on the order of summation.

    >>> to_grid(np.array([[0.6, 0.8]], np.float32))
    array([[2400., 3200.]], dtype=float32)
    """
    return np.rint(vectors * np.float32(_GRID))


def grid_product(cosine: float) -> float:
    """The product on the grid of two unit vectors with this cosine."""
    return cosine * _GRID**2


def find_cells(
    grid: np.ndarray, centroids: np.ndarray, reach: float, max_per_image: int
) -> tuple[np.ndarray, np.ndarray]:
    """Assigns images to cells.

    An image enters its own cell, and each cell whose border is at most `reach / 2`
    away. Two images at most `reach` apart meet in a cell: the line between them crosses
    the border of their cells, so one of them is at most `reach / 2` from it. An image
    enters at most `max_per_image` cells, those with the nearest borders; of equal ones,
    the first.

    Args:
      grid: images, float32 [n, d], of `to_grid`.
      centroids: float32 [c, d], of `to_grid`; c > 0.
      reach: the distance of two unit vectors that have to meet.
      max_per_image: at least 1.

    Returns:
      Cells, int64 [n, m], and the distances of their borders in steps of the grid,
      float32 [n, m], ascending. It is infinite for a cell that is not entered.
    """
    n_most = min(max_per_image, len(centroids))
    cells = np.zeros((len(grid), n_most), np.int64)
    distances = np.full((len(grid), n_most), np.inf, np.float32)
    rounding = math.sqrt(grid.shape[1]) / 2  # of each of two images that meet
    limit = np.float32(reach / 2 * _GRID + rounding)
    n_rows = max(1, _PRODUCTS_PER_BLOCK // len(centroids))
    is_worth = len(grid) >= len(centroids)
    between = _distances_between(centroids, centroids) if is_worth else None
    for start in range(0, len(grid), n_rows):
        left = border_distances(grid[start : start + n_rows], centroids, between)
        images = np.arange(len(left))
        for rank in range(n_most):
            is_all = len(images) == len(left)
            cell = (left if is_all else left[images]).argmin(axis=1)
            is_near = left[images, cell] <= limit
            images, cell = images[is_near], cell[is_near]
            if not len(images):
                break
            cells[start + images, rank] = cell
            distances[start + images, rank] = left[images, cell]
            left[images, cell] = np.inf
    return cells, distances


def border_distances(
    grid: np.ndarray, centroids: np.ndarray, between: np.ndarray | None = None
) -> np.ndarray:
    """The distance of each image from the border of its cell with each cell: [n, c].

    The border of two cells is the plane of the points that are equally near to both
    centroids. The distance is zero for the image's own cell. The lot is a step of the
    grid. `between` holds the distances of all centroids, [c, c], if they are known.
    """
    distance = grid @ centroids.T
    own = distance.argmax(axis=1)
    np.subtract(distance[np.arange(len(grid)), own, None], distance, out=distance)
    if between is None:
        return np.divide(
            distance, _distances_between(centroids[own], centroids), out=distance
        )
    return np.divide(distance, between[own], out=distance)


def _distances_between(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The distances of centroids; one for equal ones, whose borders are at zero."""
    products = (left @ right.T).astype(np.float64)
    squares = [
        np.einsum("nd,nd->n", side, side, dtype=np.float64) for side in (left, right)
    ]
    distance = np.maximum(squares[0][:, None] + squares[1] - 2 * products, 1)
    return np.sqrt(distance).astype(np.float32)
