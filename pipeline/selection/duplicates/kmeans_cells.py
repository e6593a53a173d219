"""The cells of the pool in which an image is compared with others.

A cell holds the images that are nearest to one centroid of k-means. In: unit vectors
and centroids. Out: pairs of image and cell, one of which is the image's own cell.
"""

import numpy as np

_PRODUCTS_PER_BLOCK = 2**23
_SLACK = 1e-4  # of distances in single precision


def find_cells(
    vectors: np.ndarray, centroids: np.ndarray, reach: float, max_per_image: int
) -> tuple[np.ndarray, np.ndarray]:
    """Assigns images to cells; returns numbers of images and of cells, int64 [m] each.

    An image enters its own cell, and each cell whose border is at most `reach / 2`
    away. Two images at most `reach` apart meet in a cell: the line between them crosses
    the border of their cells, so one of them is at most `reach / 2` from it. An image
    enters at most `max_per_image` cells, those with the nearest borders.
    """
    images, cells = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    n_rows = max(1, _PRODUCTS_PER_BLOCK // max(len(centroids), 1))
    for start in range(0, len(vectors), n_rows):
        distance = border_distances(vectors[start : start + n_rows], centroids)
        is_entered = distance <= reach / 2 + _SLACK
        if max_per_image < len(centroids):
            last = np.partition(distance, max_per_image - 1, axis=1)
            is_entered &= distance <= last[:, max_per_image - 1, None]
        image, cell = np.nonzero(is_entered)
        images.append(image + start)
        cells.append(cell)
    return np.concatenate(images), np.concatenate(cells)


def border_distances(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The distance of each image from the border of its cell with each cell: [n, c].

    The border of two cells is the plane of the points that are equally near to both
    centroids. The distance is zero for the image's own cell.
    """
    products = vectors @ centroids.T
    own = products.argmax(axis=1)
    own_product = products[np.arange(len(vectors)), own, None]
    between = np.sqrt(np.maximum(2 - 2 * (centroids[own] @ centroids.T), 1e-12))
    return (own_product - products) / between
