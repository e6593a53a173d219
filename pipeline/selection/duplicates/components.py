"""Links of near-duplicates within a cell, and what follows from whole components.

In: the images of a cell with their vectors. Out: the images that have a near-duplicate
there, with one image that names their component. Later, of whole components: for each
lot, the images to drop and the images kept in their place. The outcome does not depend
on the order of work: similarities are computed in double precision, and ties are broken
by sample id.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pipeline.selection.duplicates.forests import join
from pipeline.selection.duplicates.members import (
    LINKED,
    root_names,
    split_by,
    to_lot_and_row,
)
from pipeline.selection.duplicates.patches import blocks_to_compare
from pipeline.selection.lot_decisions import to_hex
from pipeline.selection.search.embeddings import normalize
from pipeline.selection.search.exact_search import cosines

_SLACK = 1e-4  # far above the rounding of a product in single precision
_DOUBLE_SLACK = 1e-10
_MANY = 8  # close pairs for each image, which take long one by one
_HEAD = 4  # numbers of a vector: 8 bytes, which hardly ever are equal by chance
_MAX_LISTED = 1000  # large components


def find_links(
    blocks: Iterable[np.ndarray], by: int, max_similarity: float
) -> np.ndarray:
    """The images of one part of a cell that have a near-duplicate there: LINKED.

    Two visitors are not compared, as near-duplicates meet where one of them is none. An
    image that was cut may have no such part, so it counts as none everywhere.

    An image has one entry, however many near-duplicates it has. `root` names the first
    image of its component within the part, and `by` is the number of the descriptor.
    """
    members = np.concatenate(list(blocks))
    order = np.argsort(members["image"])
    is_visitor = members["is_visitor"] & ~members["is_cut"]
    root, similarity = compare(
        members["embedding"][order], max_similarity, is_visitor[order]
    )
    linked = np.flatnonzero(similarity > max_similarity)
    found = np.empty(len(linked), LINKED)
    for name in ("image", "sample_id", "is_anchor"):
        found[name] = members[name][order[linked]]
    found["root"] = root_names(members["image"][order[root[linked]]])
    found["similarity"] = similarity[linked]
    found["by"] = by
    return found


def compare(
    embeddings: np.ndarray,
    max_similarity: float,
    is_visitor: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Compares all images, float [n, d], but two visitors with one another.

    Returns the first image of the component of each one, int64 [n], and its largest
    similarity to another one, float32 [n]. The latter is at most `max_similarity` for
    an image without a near-duplicate, and then not exact.
    """
    different, twin = _merge_twins(embeddings)
    vectors, _ = normalize(embeddings[different])
    links = _Links(vectors, max_similarity)
    if is_visitor is not None:
        is_host = np.zeros(len(different), bool)
        is_host[twin[~is_visitor]] = True
        is_visitor = ~is_host
    for rows, columns in blocks_to_compare(vectors, max_similarity, is_visitor):
        links.add_block(rows, columns)
    similarity = links.largest()[twin]
    if len(different) < len(twin):
        repeated = np.bincount(twin, minlength=len(different))[twin] > 1
        itself = cosines(vectors, vectors, twin[repeated], twin[repeated])
        similarity[repeated] = np.maximum(similarity[repeated], itself)
    own = np.arange(len(embeddings))
    root = different[links.root][twin]
    return np.where(similarity > max_similarity, root, own), similarity


def _merge_twins(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first images of those with equal vectors, and the place of each in these."""
    every = np.arange(len(embeddings))
    heads = np.sort(_as_bytes(np.ascontiguousarray(embeddings[:, :_HEAD])))
    if (heads[1:] != heads[:-1]).all():
        return every, every
    _, first, twin = np.unique(
        _as_bytes(np.ascontiguousarray(embeddings)),
        return_index=True,
        return_inverse=True,
    )
    order = np.argsort(first)
    return first[order], np.argsort(order)[twin]


@functools.cache  # of at most some hundred sizes
def _lower_triangle(size: int) -> np.ndarray:
    return np.tri(size, dtype=bool)


def _as_bytes(rows: np.ndarray) -> np.ndarray:
    """Each row as one number if it has 8 bytes, else as bytes."""
    width = rows.shape[1] * rows.itemsize
    return rows.view(np.uint64 if width == 8 else f"V{width}").ravel()


class _Links:
    """The components of some vectors, and their nearest ones, block by block."""

    def __init__(self, vectors: np.ndarray, max_similarity: float) -> None:
        self.root = np.arange(len(vectors))
        self._vectors = vectors
        self._bound = max_similarity
        self._best = np.full(len(vectors), -1, np.float32)  # in single precision
        self._exact = np.full(len(vectors), -1, np.float32)
        self._close: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add_block(self, rows: np.ndarray, columns: np.ndarray) -> None:
        """Compares each row with the columns after its own; these begin with rows."""
        products = self._vectors[rows] @ self._vectors[columns].T
        size = len(rows)
        products[:, :size][_lower_triangle(size)] = -1
        row = np.flatnonzero(products.max(axis=1, initial=-1) > self._bound - _SLACK)
        if not len(row):
            return
        products = products[row]
        column = np.flatnonzero(products.max(axis=0) > self._bound - _SLACK)
        self._add(products[:, column], rows[row], columns[column])

    def _add(self, products: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
        np.maximum.at(self._best, rows, products.max(axis=1))
        np.maximum.at(self._best, columns, products.max(axis=0))
        self._join_all(products > self._bound + _SLACK, rows, columns)
        is_close = products >= self._best[rows, None] - _SLACK
        is_close |= products >= self._best[columns] - _SLACK
        is_close &= products > self._bound - _SLACK
        if is_close.sum() > _MANY * (len(rows) + len(columns)):
            is_close &= self._is_closest(is_close, rows, columns)
        row, column = np.nonzero(is_close)
        self._close.append((rows[row], columns[column], products[row, column]))
        unsure = np.nonzero(np.abs(products - self._bound) <= _SLACK)
        self._join_if_similar(rows[unsure[0]], columns[unsure[1]])

    def _is_closest(
        self, is_close: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> np.ndarray:
        """Whether pairs are the closest of a block by far more exact products."""
        left = self._vectors[rows].astype(np.float64)
        right = self._vectors[columns].astype(np.float64)
        products = np.where(is_close, left @ right.T, -1)
        is_closest = products >= products.max(axis=1, keepdims=True) - _DOUBLE_SLACK
        return is_closest | (products >= products.max(axis=0) - _DOUBLE_SLACK)

    def _join_all(
        self, is_linked: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> None:
        """Joins what is linked, by few links: those of Boruvka's algorithm.

        Each image takes one link to another component at a time, so that the number of
        components halves.
        """
        while True:
            is_linked &= self.root[rows, None] != self.root[columns]
            row = np.flatnonzero(is_linked.any(axis=1))
            if not len(row):
                return
            is_linked, rows = is_linked[row], rows[row]
            column = np.flatnonzero(is_linked.any(axis=0))
            is_linked, columns = is_linked[:, column], columns[column]
            self.root = join(self.root, rows, columns[is_linked.argmax(axis=1)])
            self.root = join(self.root, rows[is_linked.argmax(axis=0)], columns)

    def _join_if_similar(self, first: np.ndarray, second: np.ndarray) -> None:
        """Joins pairs that are similar in double precision."""
        is_open = self.root[first] != self.root[second]
        first, second = first[is_open], second[is_open]
        similarity = cosines(self._vectors, self._vectors, first, second)
        is_similar = similarity > self._bound
        self.root = join(self.root, first[is_similar], second[is_similar])

    def largest(self) -> np.ndarray:
        """The largest similarity of each vector to another one, float32 [n]."""
        for first, second, product in self._close:
            is_best = product >= self._best[first] - _SLACK
            is_best |= product >= self._best[second] - _SLACK
            first, second = first[is_best], second[is_best]
            similarity = cosines(self._vectors, self._vectors, first, second)
            np.maximum.at(self._exact, first, similarity)
            np.maximum.at(self._exact, second, similarity)
        return self._exact


def merge_linked(blocks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Merges entries of the same images.

    Returns one entry for each image, by image: its largest similarity by its first
    descriptor, with the first of its roots; and pairs of roots that belong together,
    int64 [m, 2], each once.
    """
    linked = np.concatenate([np.empty(0, LINKED), *blocks])
    order = np.lexsort((-linked["similarity"], linked["by"], linked["image"]))
    linked = linked[order]  # lexsort takes its last key first
    _, first, place = np.unique(linked["image"], return_index=True, return_inverse=True)
    merged = linked[first]
    if len(merged):
        merged["root"] = np.minimum.reduceat(linked["root"], first)
    pairs = np.stack([merged["root"][place], linked["root"]], axis=1)
    return merged, np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


@dataclasses.dataclass(frozen=True, eq=False)
class Duplicates:
    """Rows of one lot that are near-duplicates of an image that is kept."""

    row: np.ndarray  # int64 [n]
    kept_id: np.ndarray  # uint64 [n, 2]
    similarity: np.ndarray  # float32 [n], with the most similar image
    by: np.ndarray  # int64 [n], number of the descriptor


def sort_by_component(linked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorts images by component; returns them and where each component starts.

    Within a component anchors come first, then images by sample id, lot and row.
    """
    keys = (
        linked["image"],
        *linked["sample_id"].T[::-1],
        ~linked["is_anchor"],
        linked["root"],
    )
    linked = linked[np.lexsort(keys)]
    return linked, np.unique(linked["root"], return_index=True)[1]


def find_duplicates(
    linked: np.ndarray, *, of_anchors: bool
) -> Iterator[tuple[int, Duplicates]]:
    """Yields (number of the lot, duplicates to drop), of whole components.

    These are all images of a component but the first. With `of_anchors` they are all
    images but the anchors of the components that have an anchor.
    """
    linked, starts = sort_by_component(linked)
    sizes = np.diff(np.append(starts, len(linked)))
    first = np.repeat(starts, sizes)
    if of_anchors:
        is_dropped = linked["is_anchor"][first] & ~linked["is_anchor"]
    else:
        is_dropped = first != np.arange(len(first))
    dropped = np.flatnonzero(is_dropped)
    lot, row = to_lot_and_row(linked["image"])
    for number, mine in split_by(lot[dropped], dropped):
        yield (
            number,
            Duplicates(
                row=row[mine],
                kept_id=linked["sample_id"][first[mine]],
                similarity=linked["similarity"][mine],
                by=linked["by"][mine].astype(np.int64),
            ),
        )


def component_sizes(linked: np.ndarray, alarm_size: int) -> dict:
    """Counts whole components by size; lists those of at least `alarm_size` images."""
    linked, starts = sort_by_component(linked)
    sizes = np.diff(np.append(starts, len(linked)))
    values, counts = np.unique(sizes, return_counts=True)
    large = [
        {"size": int(sizes[i]), "first": to_hex(linked["sample_id"][starts[i]])}
        for i in np.flatnonzero(sizes >= alarm_size).tolist()
    ]
    return {
        "images": len(linked),
        "components": len(sizes),
        "size_to_components": dict(zip(values.tolist(), counts.tolist(), strict=True)),
        "giants": large,
    }


def add_sizes(accounts: Iterable[dict]) -> dict:
    """Adds up what `component_sizes` has counted; lists the largest components."""
    accounts = list(accounts)
    sizes: collections.Counter[int] = collections.Counter()
    for account in accounts:
        sizes.update(account["size_to_components"])
    giants = [large for account in accounts for large in account["giants"]]
    giants.sort(key=lambda large: (-large["size"], large["first"]))
    return {
        "images": sum(account["images"] for account in accounts),
        "components": sum(account["components"] for account in accounts),
        "size_to_components": dict(sorted(sizes.items())),
        "giants": giants[:_MAX_LISTED],
    }
