"""Compares descriptors of near-duplicates on photos; measures what cells miss.

    python -m benchmarks.near_duplicates --data DATA

DATA holds `flickr8k/*.tar` (img2dataset tars) and `near-duplicates/`: re-encodings of
these photos, and pairs of different photos that look alike. Prints three tables: the
project's descriptor next to others, its thresholds, and recall and cost of cells
against the comparison of all pairs.
"""

import argparse
import glob
import pathlib
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
import pyarrow.parquet as pq
import simplejpeg

from pipeline.models.descriptors import Perceptual, gradients
from pipeline.selection.duplicates.cell_splits import cosine_to_distance
from pipeline.selection.duplicates.kmeans_cells import find_cells, to_grid
from pipeline.selection.duplicates.synthetic_copies import NAME_TO_COPY
from pipeline.selection.search.embeddings import normalize

N_COPIED = 200
MAX_CALLED = 0.01  # of the look-alikes
THRESHOLDS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
CELL_BOUND = 0.8
CELLS = ((16, 4), (16, 16), (64, 4), (64, 16), (256, 4), (256, 16), (256, 64))
ROWS_PER_BLOCK = 1024
RNG_SEED = 0

Describe = Callable[[np.ndarray], np.ndarray]


class Photos:
    """Decoded photos, their re-encodings and pairs of look-alikes."""

    def __init__(self, data: pathlib.Path) -> None:
        key_to_photo = read_tars(f"{data}/flickr8k/*.tar")
        keys = list(key_to_photo)
        place = {key: i for i, key in enumerate(keys)}
        folder = data / "near-duplicates"
        variants = pq.read_table(folder / "flickr8k_variants.parquet").to_pylist()
        pairs = pq.read_table(folder / "lookalikes.parquet").to_pylist()
        self.photos = [key_to_photo[key] for key in keys]
        self.variants = [simplejpeg.decode_jpeg(row["jpg"]) for row in variants]
        self.originals = np.array([place[row["near_duplicate_of"]] for row in variants])
        self.lookalikes = np.array([[place[r["a"]], place[r["b"]]] for r in pairs])
        rng = np.random.default_rng(RNG_SEED)
        self.copied = rng.choice(len(keys), N_COPIED, replace=False)


def read_tars(pattern: str) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(glob.glob(pattern)):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if member.name.endswith(".jpg") and file:
                    found[member.name[:-4]] = simplejpeg.decode_jpeg(file.read())
    return found


# Other descriptors that we tried.


def _gray(rgb: np.ndarray, side: int) -> np.ndarray:
    gray = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (side, side), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32)


def dct(rgb: np.ndarray, side: int = 8) -> np.ndarray:
    """Returns the lowest frequencies, without the mean."""
    return cv2.dct(_gray(rgb, 32))[:side, :side].ravel()[1:]


def whitened_dct(rgb: np.ndarray) -> np.ndarray:
    """Returns each frequency times its distance from zero."""
    rows, columns = np.mgrid[:12, :12]
    return dct(rgb, 12) * np.hypot(rows, columns).ravel()[1:]


def dct_signs(rgb: np.ndarray, side: int = 16) -> np.ndarray:
    """Returns the bits of a perceptual hash, as +1 and -1."""
    low = dct(rgb, side)
    return np.where(low > np.median(low), 1.0, -1.0)


def difference_hash(rgb: np.ndarray) -> np.ndarray:
    """Tells for each cell whether it is lighter than the one before, both ways."""
    gray = _gray(rgb, 12)
    across, down = gray[:-1, 1:] - gray[:-1, :-1], gray[1:, :-1] - gray[:-1, :-1]
    return np.where(np.concatenate([across.ravel(), down.ravel()]) > 0, 1.0, -1.0)


def oriented_gradients(rgb: np.ndarray, side: int = 8, n_bins: int = 8) -> np.ndarray:
    """Returns roots of gradients by direction in 8 x 8 cells."""
    gray = _gray(rgb, 64)
    x, y = cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1)
    direction = (np.arctan2(y, x) / (2 * np.pi) % 1 * n_bins).astype(int) % n_bins
    weight = np.hypot(x, y)
    cells = [
        cv2.resize(
            np.where(direction == i, weight, 0).astype(np.float32),
            (side, side),
            interpolation=cv2.INTER_AREA,
        )
        for i in range(n_bins)
    ]
    histogram = np.sqrt(np.stack(cells)).ravel()
    return histogram - histogram.mean()


OURS = "gradients and details (used)"
NAME_TO_DESCRIBE: Mapping[str, Describe] = {
    OURS: Perceptual().prepare,
    "gradients alone": lambda rgb: gradients(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)),
    "DCT, 8 x 8": dct,
    "DCT, 12 x 12, whitened": whitened_dct,
    "signs of DCT, 8 x 8": lambda rgb: dct_signs(rgb, 8),
    "signs of DCT, 16 x 16": dct_signs,
    "difference hash, 242 bits": difference_hash,
    "oriented gradients, 8 x 8 x 8": oriented_gradients,
}


class Measured:
    """Similarities of one descriptor on all photos."""

    def __init__(self, data: Photos, describe: Describe) -> None:
        start = time.perf_counter()
        self.vectors = unit_rows([describe(rgb) for rgb in data.photos])
        self.us = (time.perf_counter() - start) / len(data.photos) * 1e6
        variants = unit_rows([describe(rgb) for rgb in data.variants])
        self.variants = rowwise(variants, self.vectors[data.originals])
        self.lookalikes = rowwise(*(self.vectors[side] for side in data.lookalikes.T))
        sources = [data.photos[i] for i in data.copied]
        self.copies = {
            name: rowwise(
                unit_rows([describe(copy(rgb)) for rgb in sources]),
                self.vectors[data.copied],
            )
            for name, copy in NAME_TO_COPY.items()
        }

    @property
    def threshold(self) -> float:
        """The lowest threshold that at most 1 % of the look-alikes reach."""
        n_called = int(MAX_CALLED * len(self.lookalikes))
        return float(np.sort(self.lookalikes)[::-1][n_called])

    def n_pairs(self, threshold: float) -> int:
        """Number of pairs of different photos above a threshold."""
        return len(similar_pairs(self.vectors, threshold))

    def cells(self, threshold: float) -> list[str]:
        """The cells of a table's row for a threshold."""
        shares = [np.mean(found > threshold) for found in self.copies.values()]
        return [
            f"{threshold:.3g}",
            f"{np.mean(self.variants > threshold):.3f}",
            f"{np.sum(self.lookalikes > threshold)}",
            f"{self.n_pairs(threshold)}",
            *(f"{share:.2f}" for share in shares[1:]),
        ]


def unit_rows(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of length one, in float16, as `score` stores them."""
    return normalize(np.stack(vectors).astype(np.float16))[0]


def rowwise(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", left, right)


def similar_pairs(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Pairs of unit vectors whose cosine is above a threshold: int64 [n, 2]."""
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(vectors), ROWS_PER_BLOCK):
        products = vectors[start : start + ROWS_PER_BLOCK] @ vectors[start:].T
        pairs = np.argwhere(products > threshold)
        found.append(pairs[pairs[:, 0] < pairs[:, 1]] + start)
    return np.concatenate(found)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print()
    for row in (heads, ["---"] * len(heads), *rows):
        print(f"| {' | '.join(row)} |", flush=True)


def print_cells(vectors: np.ndarray) -> None:
    """Prints recall and cost of comparing within cells."""
    pairs = similar_pairs(vectors, CELL_BOUND)
    grid = to_grid(vectors)
    rows = []
    for n_clusters, max_per_image in CELLS:
        rng = np.random.default_rng(RNG_SEED)
        centroids = grid[rng.choice(len(vectors), n_clusters, replace=False)]
        reach = cosine_to_distance(CELL_BOUND)
        cells, borders = find_cells(grid, centroids, reach, max_per_image)
        image, rank = np.nonzero(np.isfinite(borders))
        entered = np.zeros((len(vectors), n_clusters), bool)
        entered[image, cells[image, rank]] = True
        is_met = (entered[pairs[:, 0]] & entered[pairs[:, 1]]).any(axis=1)
        sizes = entered.sum(axis=0)
        n_compared = np.sum(sizes * (sizes - 1) // 2)
        n_all = len(vectors) * (len(vectors) - 1) // 2
        numbers = (n_clusters, max_per_image)
        shares = (len(image) / len(vectors), n_compared / n_all, is_met.mean())
        rows.append([*map(str, numbers), *(f"{share:.3f}" for share in shares)])
    heads = ["cells", "`max_per_image`", "cells per image", "compared", "recall"]
    print_table(heads, rows)
    print(f"\n{len(pairs)} pairs above {CELL_BOUND} of {len(vectors)} images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    data = Photos(parser.parse_args().data)
    print(f"{len(data.photos)} photos, {len(data.variants)} re-encodings,", end=" ")
    print(f"{len(data.lookalikes)} pairs of look-alikes")
    heads = ["threshold", "re-encodings found", "look-alikes called", "pairs of photos"]
    heads += list(NAME_TO_COPY)[1:]
    found = {name: Measured(data, d) for name, d in NAME_TO_DESCRIBE.items()}
    rows = [
        [name, str(m.vectors.shape[1]), f"{m.us:.0f}", *m.cells(m.threshold)]
        for name, m in found.items()
    ]
    print_table(["descriptor", "numbers", "µs per image", *heads], rows)
    print_table(heads, [found[OURS].cells(threshold) for threshold in THRESHOLDS])
    variants = unit_rows([Perceptual().prepare(rgb) for rgb in data.variants])
    print_cells(np.concatenate([found[OURS].vectors, variants]))


if __name__ == "__main__":
    main()
