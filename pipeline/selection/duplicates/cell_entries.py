"""Which parts of cells the images of the pool enter.

In: decisions on pairs, and the stored vectors of their images. Out: blocks of images,
keyed by the part of a cell in which they are compared. Cells that are too large are
split first, by a sample of the pool.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.utils.shared import Shared

from pipeline.config.duplicates import Cells, Resemblance
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection.duplicates.cell_splits import (
    NO_IMAGE,
    CellSplit,
    SplitPlan,
    cosine_to_distance,
    split_cell,
    wanted_size,
)
from pipeline.selection.duplicates.kmeans_cells import find_cells, to_grid
from pipeline.selection.duplicates.members import (
    image_numbers,
    members_dtype,
    mix,
    split_by,
)
from pipeline.selection.lot_decisions import LotDecisions, read_rows, to_words
from pipeline.selection.search import kmeans
from pipeline.selection.search.embeddings import normalize, read_blocks
from pipeline.selection.search.reference_sets import ReferenceSet
from pipeline.storage import files

_LEAST_WANTED = 64  # images in a small cell; a part of one takes a millisecond
# Small cells that make a split worth it. Where images enter four, a part has four times
# as many, and each is compared in four; to handle them costs about as much.
_WORTH = 32
_MOST_SMALL = 1024  # small cells of a cell, with all of which its images are compared
_SAMPLED = 8  # images of the sample for each small cell
_BLOCK_BYTES = 2**26  # of vectors in single precision
_KEY_BITS = 20  # of the number of a small cell, and of that of a part
_BUNDLE_BITS = 4  # of the numbers of small cells that travel together

Number = int | np.ndarray


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Which images are compared with one another, and how."""

    run: RunFolder  # compares by the descriptor of `resemblance`
    cells: Cells
    resemblance: Resemblance
    of_anchors: bool  # with the images that were dropped as near an evaluation image

    def plan(self, n_pool: int, dim: int) -> SplitPlan:
        """How cells of a pool of so many images are split."""
        n_entries = n_pool * min(self.cells.max_per_image, self.cells.n_clusters)
        least = math.ceil(n_entries / (self.cells.n_clusters * _MOST_SMALL))
        n_wanted = wanted_size(n_entries, dim, max(_LEAST_WANTED, least))
        bound = self.resemblance.max_similarity
        scale = max(1, n_wanted / _SAMPLED)
        return SplitPlan(self.cells, bound, scale, n_wanted, _WORTH * n_wanted)


def compared_rows(
    decisions: LotDecisions, *, of_anchors: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a lot that are compared, ascending, and which of them are anchors.

    Within the pool these are the droppable ones. With anchors they are all kept images,
    and those that were dropped as near an evaluation image.
    """
    if not of_anchors:
        rows = decisions.droppable_rows
        return rows, np.zeros(len(rows), bool)
    is_anchor = decisions.is_dropped_for(DropReason.NEAR_EVALUATION)
    is_anchor &= ~np.isnan(decisions.value)
    rows = np.union1d(decisions.kept_rows, np.flatnonzero(is_anchor))
    return rows, is_anchor[rows]


def read_members(
    decisions: LotDecisions, compare: Comparison, names: Sequence[str], share: float
) -> Iterator[np.ndarray]:
    """Yields blocks of the images of a lot that are compared: `members_dtype`.

    `names` are those of all lots, in order. Of all images a share is drawn, by sample
    id.
    """
    run, lot = compare.run, decisions.lot
    rows, is_anchor = compared_rows(decisions, of_anchors=compare.of_anchors)
    table = read_rows(run.pairs(lot.source), decisions, rows, "sample_id")
    sample_id = to_words(table["sample_id"])
    if share < 1:
        drawn = mix(sample_id[:, 1]) < np.uint64(share * 2**64)
        rows, is_anchor, sample_id = rows[drawn], is_anchor[drawn], sample_id[drawn]
    images = image_numbers(names.index(lot.name), rows)
    found: list[np.ndarray] = []
    for place, embedding in read_blocks(run, decisions, rows):
        members = np.empty(len(place), members_dtype(embedding.shape[1]))
        members["image"] = images[place]
        members["sample_id"] = sample_id[place]
        members["is_anchor"] = is_anchor[place]
        members["embedding"] = embedding
        found.append(members[normalize(embedding)[1]])
        if sum(map(len, found)) * embedding.shape[1] * 4 >= _BLOCK_BYTES:
            yield np.concatenate(found)
            found = []
    if any(map(len, found)):
        yield np.concatenate(found)


class Splits:
    """The cells that are split, and the images of their groups of look-alikes."""

    def __init__(self, cell_to_split: Mapping[int, CellSplit]) -> None:
        self.by_cell = cell_to_split
        groups = [
            (image, cell, small)
            for cell, split in sorted(cell_to_split.items())
            for small, image in enumerate(split.image.tolist())
            if image != NO_IMAGE
        ]
        self._groups = np.array(groups, np.int64).reshape(-1, 3)

    @classmethod
    def read(cls, paths: Mapping[int, str]) -> "Splits":
        """Reads the files that `WriteSplits` has written."""
        found: dict[int, CellSplit] = {}
        for cell, data in zip(paths, files.read_many([*paths.values()]), strict=True):
            if isinstance(data, OSError):
                raise data
            found[cell] = CellSplit.from_bytes(data)
        return cls(found)

    def entries_of_groups(self, images: np.ndarray) -> np.ndarray:
        """Entries of images of groups, as `find_entries` has them: int64 [m, 5].

        They enter these cells wherever they lie, and as their own, so that their
        look-alikes find them.
        """
        place, group = np.nonzero(images[:, None] == self._groups[:, 0])
        none = np.zeros((len(place), 2), np.int64)  # is neither a visitor nor cut
        return np.column_stack([place, self._groups[group, 1:], none])


def enter_cells(
    members: np.ndarray,
    centroids: np.ndarray,
    splits: Splits,
    comparison: Comparison,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (part of a cell, images that enter it).

    Args:
      members: images, `members_dtype`.
      centroids: of cells, float32 [c, d], of `to_grid`.
    """
    entries = find_part_entries(members, centroids, splits, comparison)
    yield from take_members(members, entries, entries[:, 0])


def take_members(
    members: np.ndarray, entries: np.ndarray, keys: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (key, images as they enter parts), by the key of each entry."""
    for key, mine in split_by(keys, entries):
        images = members[mine[:, 1]]
        images["part"], images["is_visitor"], images["is_cut"] = mine[:, [0, 2, 3]].T
        yield key, images


def find_part_entries(
    members: np.ndarray,
    centroids: np.ndarray,
    splits: Splits,
    comparison: Comparison,
) -> np.ndarray:
    """Which images enter which parts: int64 [m, 4].

    These are parts, positions, and whether an image is a visitor there, and cut.
    """
    vectors, _ = normalize(members["embedding"])
    entries = find_entries(to_grid(vectors), centroids, splits, comparison)
    more = splits.entries_of_groups(members["image"])
    if len(more):
        entries = np.unique(np.concatenate([entries, more]), axis=0)
        is_again = (np.diff(entries[:, :3], axis=0) == 0).all(axis=1)
        entries = entries[~np.append(False, is_again)]
    bound = comparison.resemblance.max_similarity
    is_split = np.isin(entries[:, 1], list(splits.by_cell))
    keys = [_part_keys(entries[~is_split, 1], 0, 0)]
    entered = [entries[~is_split]]
    for cell, mine in split_by(entries[is_split, 1], entries[is_split]):
        found, part = splits.by_cell[cell].find_parts(
            members["image"], vectors, mine[:, 0], mine[:, 2], bound
        )
        keys.append(_part_keys(cell, mine[found, 2], part))
        entered.append(mine[found])
    return np.column_stack(
        [np.concatenate(keys), np.concatenate(entered)[:, [0, 3, 4]]]
    )


def _part_keys(cell: Number, small: Number, part: Number) -> np.ndarray:
    """One number for each part of a small cell of a cell."""
    return np.asarray((cell << 2 * _KEY_BITS) + (small << _KEY_BITS) + part)


def _bundles(parts: np.ndarray) -> np.ndarray:
    """Keys of a shuffle, each of some parts, as a part alone is small."""
    return parts & ~((2**_BUNDLE_BITS - 1) << _KEY_BITS)


def find_entries(
    grid: np.ndarray, centroids: np.ndarray, splits: Splits, comparison: Comparison
) -> np.ndarray:
    """Which images enter which cells: int64 [m, 5].

    These are positions, cells, small cells, whether another small cell of that cell is
    the image's own, and whether the image enters fewer cells than borders ask for.
    Cells that are not split have one small cell, 0. The border of a small cell is as
    far as that of its cell or its own, whichever is farther.
    """
    n_most = comparison.cells.max_per_image
    reach = cosine_to_distance(comparison.resemblance.max_similarity)
    cells, borders = find_cells(grid, centroids, reach, n_most + 1)
    small = np.zeros((cells.size, n_most + 1), np.int64)
    is_visitor = np.ones((cells.size, n_most + 1), bool)
    is_visitor[:: cells.shape[1], 0] = False
    distance = np.full((cells.size, n_most + 1), np.inf, np.float32)
    distance[:, 0] = borders.ravel()
    entered = np.flatnonzero(
        np.isfinite(borders) & np.isin(cells, list(splits.by_cell))
    )
    for cell, mine in split_by(cells.ravel()[entered], entered):
        smaller = splits.by_cell[cell].centroids.astype(np.float32)
        images = grid[mine // cells.shape[1]]
        found, border = find_cells(images, smaller, reach, n_most + 1)
        is_visitor[mine, 0] = False
        small[mine, : found.shape[1]] = found
        farther = np.maximum(border, borders.ravel()[mine, None])
        distance[mine, : found.shape[1]] = farther
    distance = distance.reshape(len(grid), -1)
    nearest = np.argsort(distance, axis=1, kind="stable")
    is_near = np.isfinite(np.take_along_axis(distance, nearest, 1))
    image, rank = np.nonzero(is_near[:, :n_most])
    is_cut = np.any(is_near[:, n_most:], axis=1)[image]
    place = nearest[image, rank]
    small, is_visitor = (
        each.reshape(len(grid), -1)[image, place] for each in (small, is_visitor)
    )
    own = cells[image, place // (n_most + 1)]
    return np.column_stack([image, own, small, is_visitor, is_cut])


class SampleCells(kmeans.DoFnWithCentroids):
    """Yields (cell, sampled images of one lot in it), if the pool may need a split."""

    def __init__(self, comparison: Comparison) -> None:
        super().__init__()
        self._comparison = comparison

    def process(
        self, decisions: LotDecisions, path: str, names: Sequence[str], n_pool: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        centroids = grid_centroids(self.centroids(path))
        plan = self._comparison.plan(n_pool, centroids.shape[1])
        if n_pool <= plan.n_unsplit or not len(centroids):
            return
        none = Splits({})
        for members in read_members(decisions, self._comparison, names, 1 / plan.scale):
            yield from (
                (key >> 2 * _KEY_BITS, mine)
                for key, mine in enter_cells(members, centroids, none, self._comparison)
            )


def grid_centroids(found: ReferenceSet) -> np.ndarray:
    """The centroids of a file, on the grid: float32 [n, d]."""
    return to_grid(found.index.reconstruct_n(0, found.index.ntotal))


class WriteSplits(beam.DoFn):
    """Splits cells that are too large; yields (cell, path of its split).

    A file is named by its contents. `delete_splits` removes it after the job.
    """

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    def process(
        self, cell_to_sample: tuple[int, Iterable[np.ndarray]], n_pool: int
    ) -> Iterator[tuple[int, str]]:
        cell, blocks = cell_to_sample
        sample = np.concatenate(list(blocks))
        plan = self._comparison.plan(n_pool, sample["embedding"].shape[1])
        split = split_cell(sample, plan)
        if split is not None:
            data = split.to_bytes()
            name = f"{hashlib.blake2b(data, digest_size=16).hexdigest()}.npz"
            path = files.join(_splits_folder(self._comparison.run.root), name)
            files.write(path, data)
            yield cell, path


def _splits_folder(root: str) -> str:
    return files.join(root, "clusters", "splits")


def delete_splits(root: str) -> None:
    """Deletes the splits of a job that is over, which no other job reads."""
    folder = _splits_folder(root)
    if files.list_below(folder):
        files.delete_folder(*files.split(folder))


class EnterCells(kmeans.DoFnWithCentroids):
    """Yields (some parts of a cell, images of one lot that enter these)."""

    def __init__(self, comparison: Comparison) -> None:
        super().__init__()
        self._comparison = comparison
        self._shared_splits = Shared()

    def process(
        self,
        decisions: LotDecisions,
        path: str,
        names: Sequence[str],
        cell_to_path: Mapping[int, str],
    ) -> Iterator[tuple[int, np.ndarray]]:
        centroids = grid_centroids(self.centroids(path))
        if not len(centroids):
            return
        splits = self._shared_splits.acquire(
            lambda: Splits.read(cell_to_path), tag=str(sorted(cell_to_path.items()))
        )
        for members in read_members(decisions, self._comparison, names, 1):
            entries = find_part_entries(members, centroids, splits, self._comparison)
            yield from take_members(members, entries, _bundles(entries[:, 0]))
