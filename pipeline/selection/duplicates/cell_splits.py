"""Cells that are too large are split into smaller ones.

In: a sample of the images of one cell. Out: centroids of smaller cells, and for those
that a group of look-alikes fills, an image of the group and a number of parts. Of such
a cell, the look-alikes of that image, which link to it, are spread over the parts. All
other images enter every part, so that nothing is missed. Everything is the same on
every machine and in every order of work.
"""

import dataclasses
import io
import math

import numpy as np

from pipeline.config.duplicates import Cells
from pipeline.selection.duplicates.kmeans_cells import (
    find_cells,
    grid_product,
    to_grid,
)
from pipeline.selection.duplicates.members import mix
from pipeline.selection.search.embeddings import normalize
from pipeline.selection.search.exact_search import cosines

NO_IMAGE = -1  # in place of the image of a group
_N_PILOTS = 128  # images that are tried as the image of a group
_MAX_ROUNDS = 6  # of splitting what is still too large
_CENTROID_BYTES = 2**29  # of all split cells, which each worker holds
_FINER = 256  # steps of means to one of the grid: their squares fit 64 bits
_VISITS = 4  # an image of a cell enters as many smaller ones, far fewer in the end


@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """How cells are split, and how large their parts become."""

    cells: Cells
    max_similarity: float
    scale: float  # images of the pool for each one of the sample
    n_wanted: int  # images in a small cell, on average; its visitors come on top
    n_whole: int = 0  # images in a cell that costs less whole than split

    @property
    def n_most(self) -> int:
        """Images in a small cell."""
        return 2 * self.n_wanted

    @property
    def n_unsplit(self) -> int:
        """Images in a cell that is not split."""
        return max(self.n_most, self.n_whole)

    @property
    def reach(self) -> float:
        """The distance of two images that have to meet."""
        return cosine_to_distance(self.max_similarity)


def cosine_to_distance(max_similarity: float) -> float:
    """The Euclidean distance of two unit vectors, from their cosine."""
    return math.sqrt(max(0.0, 2 - 2 * max_similarity))


def wanted_size(n_entries: int, dim: int, least: int) -> int:
    """Images in a small cell, so that all centroids fit into a worker's memory."""
    n_centroids = _CENTROID_BYTES // (2 * max(dim, 1))
    return max(least, math.ceil(n_entries / n_centroids))


@dataclasses.dataclass(frozen=True, eq=False)
class CellSplit:
    """Smaller cells in place of one."""

    centroids: np.ndarray  # int16 [k, d], of `to_grid`
    n_parts: np.ndarray  # int64 [k]
    image: np.ndarray  # int64 [k], of the look-alikes, or NO_IMAGE
    embedding: np.ndarray  # float16 [k, d], of this image

    def to_bytes(self) -> bytes:
        """The same bytes for the same split."""
        buffer = io.BytesIO()
        np.savez(buffer, **dataclasses.asdict(self))
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "CellSplit":
        """Reads what `to_bytes` has written."""
        with np.load(io.BytesIO(data)) as arrays:
            return cls(**arrays)

    def find_parts(
        self,
        images: np.ndarray,
        vectors: np.ndarray,
        place: np.ndarray,
        cells: np.ndarray,
        bound: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The parts of cells that some images of a block enter.

        Args:
          images: `image_numbers` of the block, int64 [n].
          vectors: their unit vectors, float32 [n, d].
          place: positions in these, int64 [m].
          cells: the cell that each one enters, int64 [m].
          bound: the cosine that look-alikes exceed.

        Returns:
          Positions in `place` and numbers of parts, int64 each.
        """
        n_parts = self.n_parts[cells]
        divided = np.flatnonzero(n_parts > 1)
        if not len(divided):
            return np.arange(len(place)), np.zeros(len(place), np.int64)
        own = images[place]
        parts = (mix(own) % n_parts.astype(np.uint64)).astype(np.int64)
        groups, _ = normalize(self.embedding)
        similarity = cosines(vectors, groups, place[divided], cells[divided])
        is_like = similarity > bound
        is_like &= own[divided] != self.image[cells[divided]]
        spread = divided[~is_like]
        single = np.setdiff1d(np.arange(len(place)), spread, assume_unique=True)
        each = np.repeat(spread, n_parts[spread])
        ends = np.cumsum(n_parts[spread])
        number = np.arange(len(each)) - np.repeat(
            ends - n_parts[spread], n_parts[spread]
        )
        return np.concatenate([single, each]), np.concatenate([parts[single], number])


def split_cell(sample: np.ndarray, plan: SplitPlan) -> CellSplit | None:
    """Splits a cell, given a sample of its images; None if it is small enough."""
    if len(sample) * plan.scale <= plan.n_unsplit:
        return None
    sample = sample[np.lexsort((sample["image"], _order(sample, plan)))]
    grid = to_grid(normalize(sample["embedding"])[0])
    larger = _with_visitors(sample, plan)
    centers, rest = _take_groups(grid, larger)
    centroids = np.concatenate([centers, train(rest, _n_cells(rest, larger), larger)])
    for _ in range(_MAX_ROUNDS):
        centroids, is_done = _split_largest(grid, centroids, larger)
        if is_done:
            break
    return _divide(sample, grid, centroids, plan)


def _with_visitors(sample: np.ndarray, plan: SplitPlan) -> SplitPlan:
    """The plan for all images of a cell, not for those alone of which it is the own.

    The more images visit the cell from others, the more visit each small cell.
    """
    share = max(1 / plan.cells.max_per_image, 1 - sample["is_visitor"].mean())
    return dataclasses.replace(plan, n_wanted=math.ceil(plan.n_wanted / share))


def _order(sample: np.ndarray, plan: SplitPlan) -> np.ndarray:
    return mix(sample["sample_id"][:, 0] + np.uint64(plan.cells.rng_seed))


def _n_cells(grid: np.ndarray, plan: SplitPlan) -> int:
    return math.ceil(len(grid) * plan.scale / plan.n_wanted)


def _take_groups(grid: np.ndarray, plan: SplitPlan) -> tuple[np.ndarray, np.ndarray]:
    """Centers of groups of look-alikes that would fill a cell, and all other images."""
    centers = [grid[:0]]
    while True:
        _, is_like = _largest_group(grid, plan)
        if is_like.sum() * plan.scale <= plan.n_most:
            return np.concatenate(centers), grid
        total = grid[is_like].astype(np.int64).sum(axis=0, keepdims=True)
        centers.append(_directions(total, np.array([is_like.sum()]), grid[:1]))
        grid = grid[~is_like]


def _largest_group(grid: np.ndarray, plan: SplitPlan) -> tuple[int, np.ndarray]:
    """Of some images, the one with the most look-alikes, and which these are."""
    if not len(grid):
        return NO_IMAGE, np.zeros(0, bool)
    bound = grid_product(plan.max_similarity)
    is_like = grid[:_N_PILOTS] @ grid.T > bound
    pilot = int(is_like.sum(axis=1).argmax())
    return pilot, is_like[pilot]


def train(grid: np.ndarray, n: int, plan: SplitPlan) -> np.ndarray:
    """At most `n` centroids of images, by k-means, beginning with the first images."""
    weights = np.arange(grid.shape[1], dtype=np.float32) % 61 - 30
    _, first = np.unique(grid @ weights, return_index=True)  # equal images count once
    centroids = grid[np.sort(first)[:n]]
    for _ in range(plan.cells.n_iterations if len(centroids) else 0):
        nearest = _nearest(grid, centroids)
        order = np.argsort(nearest, kind="stable")
        found, starts, counts = np.unique(
            nearest[order], return_index=True, return_counts=True
        )
        sums = np.add.reduceat(grid[order].astype(np.int64), starts, axis=0)
        centroids = centroids.copy()
        centroids[found] = _directions(sums, counts, centroids[found])
    return centroids


def _directions(
    sums: np.ndarray, counts: np.ndarray, otherwise: np.ndarray
) -> np.ndarray:
    """The directions of means of images, on the grid; where one is zero, `otherwise`.

    Exact, but for a root and a quotient, which are the same on every machine.
    """
    means = sums * _FINER // counts[:, None]
    length = np.sqrt((means * means).sum(axis=1).astype(np.float64))[:, None]
    directions = to_grid((means / np.maximum(length, 1)).astype(np.float32))
    return np.where(length > 0, directions, otherwise).astype(np.float32)


def _nearest(grid: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    n_rows = max(1, 2**22 // len(centroids))
    blocks = range(0, len(grid), n_rows)
    found = [(grid[i : i + n_rows] @ centroids.T).argmax(axis=1) for i in blocks]
    return np.concatenate([np.empty(0, np.int64), *found])


def _split_largest(
    grid: np.ndarray, centroids: np.ndarray, plan: SplitPlan
) -> tuple[np.ndarray, bool]:
    """Replaces centroids of cells that are too large; returns whether all were well.

    A cell that is full of look-alikes is divided into parts, not split.
    """
    cell = _nearest(grid, centroids)
    counts = np.bincount(cell, minlength=len(centroids))
    added, is_replaced = [], np.zeros(len(centroids), bool)
    for large in np.flatnonzero(counts * plan.scale > plan.n_most).tolist():
        mine = grid[cell == large]
        rest = mine[~_largest_group(mine, plan)[1]]
        if len(rest) * plan.scale <= plan.n_most:
            continue
        smaller = train(mine, _n_cells(mine, plan), plan)
        if len(smaller) > 1:
            is_replaced[large] = True
            added.append(smaller)
    return np.concatenate([centroids[~is_replaced], *added]), not added


def _divide(
    sample: np.ndarray, grid: np.ndarray, centroids: np.ndarray, plan: SplitPlan
) -> CellSplit:
    """Finds the cells that look-alikes fill, also as they visit from other cells."""
    visited, distance = find_cells(grid, centroids, plan.reach, _VISITS)
    images, rank = np.nonzero(np.isfinite(distance))
    cells = visited[images, rank]
    n_parts = np.ones(len(centroids), np.int64)
    image = np.full(len(centroids), NO_IMAGE)
    embedding = np.zeros((len(centroids), grid.shape[1]), np.float16)
    counts = np.bincount(cells, minlength=len(centroids))
    most = _VISITS * plan.n_unsplit
    for full in np.flatnonzero(counts * plan.scale > most).tolist():
        mine = np.sort(images[cells == full])
        pilot, is_like = _largest_group(grid[mine], plan)
        n_parts[full] = 1 + int(is_like.sum() * plan.scale) // most
        image[full] = sample["image"][mine[pilot]]
        embedding[full] = sample["embedding"][mine[pilot]]
    return CellSplit(centroids.astype(np.int16), n_parts, image, embedding)
