"""Images that are compared, as they travel between the steps.

One array holds any number of them, so that a shuffle moves few objects. An image is
named by one number: that of its lot among all names in order, and its row.
"""

from collections.abc import Iterator

import numpy as np

_ROW_BITS = 32


def members_dtype(dim: int) -> np.dtype:
    """Images to compare, with vectors of a width."""
    return np.dtype(
        [
            ("image", np.int64),  # `image_numbers`
            ("sample_id", np.uint64, 2),
            ("is_anchor", bool),  # dropped already; drops its whole component
            ("part", np.int64),  # of a cell, in which it is compared
            ("is_visitor", bool),  # another part is its own
            ("is_cut", bool),  # enters fewer cells than borders ask for
            ("embedding", np.float16, dim),  # as stored
        ]
    )


LINKED = np.dtype(
    [
        ("image", np.int64),  # `image_numbers`
        ("root", np.int64),  # names its component, by `root_names` of an image of it
        ("sample_id", np.uint64, 2),
        ("is_anchor", bool),
        ("similarity", np.float32),  # with the most similar image
        ("by", np.int8),  # number of the descriptor
    ]
)


def image_numbers(lot: int, rows: np.ndarray) -> np.ndarray:
    """Numbers of images, int64 [n], in the order of lots and rows."""
    return (lot << _ROW_BITS) + rows.astype(np.int64)


def to_lot_and_row(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the lots of images, and their rows: int64 [n] each."""
    return images >> _ROW_BITS, images & ((1 << _ROW_BITS) - 1)


def mix(numbers: np.ndarray) -> np.ndarray:
    """Spreads numbers over all of 64 bits, one to one: uint64 [n].

    The finalizer of SplitMix64 (Steele et al. 2014).
    """
    x = numbers.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def root_names(images: np.ndarray) -> np.ndarray:
    """Names of components, int64 [n], by one image of each.

    They have no order: components that make up a chain are merged from all its places,
    whatever the order of its images.
    """
    return mix(images).view(np.int64)


def split_by(keys: np.ndarray, entries: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (key, its entries), by key; entries keep their order."""
    order = np.argsort(keys, kind="stable")
    found, starts = np.unique(keys[order], return_index=True)
    ordered, ends = entries[order], np.append(starts, len(order))[1:]
    for key, start, end in zip(found.tolist(), starts, ends, strict=True):
        yield key, ordered[start:end]
