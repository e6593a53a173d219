"""Connected components from pairs of nodes, in memory.

In: pairs of numbers. Out: for each one the smallest number of its component.
"""

import numpy as np


def join(root: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Joins the components of pairs of places.

    `root` gives the first place of the component of each place, and so does what is
    returned.

    >>> join(np.array([0, 1, 2, 3]), np.array([3, 2]), np.array([2, 1]))
    array([0, 1, 1, 1])
    """
    while True:
        a, b = root[first], root[second]
        is_open = a != b
        if not is_open.any():
            return root
        first, second = first[is_open], second[is_open]
        low = np.minimum(a[is_open], b[is_open])
        high = np.maximum(a[is_open], b[is_open])
        root = root.copy()
        np.minimum.at(root, high, low)
        root = flatten(root)


def flatten(root: np.ndarray) -> np.ndarray:
    """Follows roots of roots to their ends."""
    while True:
        further = root[root]
        if np.array_equal(further, root):
            return root
        root = further


def find_roots(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nodes of pairs, ascending, and the smallest node of the component of each.

    >>> find_roots(np.array([[9, 5], [5, 7], [1, 3]]))
    (array([1, 3, 5, 7, 9]), array([1, 1, 5, 5, 5]))
    """
    nodes, place = np.unique(pairs, return_inverse=True)
    place = place.reshape(-1, 2)
    root = join(np.arange(len(nodes)), place[:, 0], place[:, 1])
    return nodes, nodes[root]
