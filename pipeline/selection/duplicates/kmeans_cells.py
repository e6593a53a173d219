"""Which cells of the pool an image is compared in.

A cell is what is nearest to one of the centroids of k-means. In: unit vectors. Out:
pairs of image and cell, of which one is the image's own.
"""

import numpy as np

_PRODUCTS_PER_BLOCK = 2**23
_SLACK = 1e-4  # of distances in single precision


def find_cells(
    vectors: np.ndarray, centroids: np.ndarray, reach: float, max_per_image: int
) -> tuple[np.ndarray, np.ndarray]:
    """Entries of images into cells: number of the image, and of the cell.

    An image enters its own cell and those whose border is at most `reach / 2` away. The
    way from an image to another at most `reach` away crosses the border between their
    cells, so one of the two is that near to it: they meet. At most `max_per_image`
    cells, those of the nearest borders.
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
    """How far each image is from the border of each cell with its own: [n, c].

    The border of two cells is the plane of what is equally near to both centroids. Zero
    for the cell of the image itself.
    """
    products = vectors @ centroids.T
    own = products.argmax(axis=1)
    own_product = products[np.arange(len(vectors)), own, None]
    between = np.sqrt(np.maximum(2 - 2 * (centroids[own] @ centroids.T), 1e-12))
    return (own_product - products) / between
