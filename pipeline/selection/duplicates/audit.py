"""Audits a recipe's bounds: which near-copies of evaluation images they would find.

In: a run that is scored and selected. Copies are made in memory, described by the run's
descriptors and searched in its evaluation indexes. Out: recall by kind of copy and
bound, and the share of look-alikes that would wrongly be called near-duplicates.
Neither scores nor decisions change.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.duplicates import Descriptor, Resemblance
from pipeline.config.selection import SelectionConfig
from pipeline.engine.run_folder import RunFolder
from pipeline.images import decoder as images
from pipeline.models import descriptors
from pipeline.models.descriptors import ImageDescriptor
from pipeline.records import Pair
from pipeline.selection.duplicates.synthetic_copies import NAME_TO_COPY
from pipeline.selection.hashed_random import unit_hashes
from pipeline.selection.search import index_builder
from pipeline.selection.search.embeddings import normalize, read_matrix_blocks
from pipeline.selection.search.reference_sets import ReferenceSet
from pipeline.sources import shards
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.tables import from_table

N_IMAGES = 200  # evaluation images that are copied, of all sets together
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)

_IMAGES_PER_BATCH = 32


@dataclasses.dataclass(frozen=True)
class DescriptorAudit:
    """The similarities of copies and look-alikes by one descriptor."""

    descriptor: Descriptor
    bounds: tuple[float, ...]  # of the recipe
    copy_to_similarity: Mapping[str, np.ndarray]  # with the nearest evaluation image
    lookalikes: np.ndarray  # similarity of each pair

    @property
    def thresholds(self) -> tuple[float, ...]:
        """THRESHOLDS and the bounds of the recipe, ascending."""
        return tuple(sorted({*THRESHOLDS, *self.bounds}))

    def recall(self, name: str, threshold: float) -> float:
        """The share of the copies of one kind above a threshold."""
        return float(np.mean(self.copy_to_similarity[name] > threshold))

    def share_called(self, threshold: float) -> float | None:
        """The share of the look-alikes above a threshold; None without look-alikes."""
        if not len(self.lookalikes):
            return None
        return float(np.mean(self.lookalikes > threshold))

    def precision(self, threshold: float) -> float | None:
        """The share of copies among the copies and look-alikes above a threshold."""
        similarity = np.concatenate(list(self.copy_to_similarity.values()))
        n_found = np.sum(similarity > threshold)
        n_all = n_found + np.sum(self.lookalikes > threshold)
        return float(n_found / n_all) if len(self.lookalikes) and n_all else None

    def to_json(self) -> dict:
        """Recall and precision by threshold, as plain JSON values."""
        table = {name: self._row(name) for name in self.copy_to_similarity}
        return {
            "bounds": self.bounds,
            "thresholds": self.thresholds,
            "recall": table,
            "lookalikes_called": [self.share_called(t) for t in self.thresholds],
            "precision": [self.precision(t) for t in self.thresholds],
        }

    def _row(self, name: str) -> list[float]:
        return [self.recall(name, threshold) for threshold in self.thresholds]

    def to_text(self) -> str:
        """A table of recall by threshold; the recipe's bounds have a star."""
        heads = [f"{t:g}{'*' * (t in self.bounds)}" for t in self.thresholds]
        rows = [(name, self._row(name)) for name in self.copy_to_similarity]
        lines = [f"{self.descriptor.name:18}" + "".join(f"{head:>7}" for head in heads)]
        lines += [
            f"{name:18}" + "".join(f"{share:7.2f}" for share in row)
            for name, row in rows
        ]
        if len(self.lookalikes):
            called = "".join(f"{self.share_called(t):7.3f}" for t in self.thresholds)
            lines.append(f"{'look-alikes':18}{called}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Audit:
    """The audits of all descriptors of a run."""

    n_images: int
    n_lookalikes: int
    n_unknown: int  # look-alikes that the run has not described
    by_descriptor: tuple[DescriptorAudit, ...]
    copy_to_found: Mapping[str, float]  # by any bound on evaluation images

    def to_json(self) -> dict:
        """The audit as plain JSON values, for `RUN/audit.json`."""
        return {
            "images": self.n_images,
            "lookalikes": self.n_lookalikes,
            "lookalikes_unknown": self.n_unknown,
            "found_by_any": dict(self.copy_to_found),
            "descriptors": {
                found.descriptor.name: found.to_json() for found in self.by_descriptor
            },
        }

    def to_text(self) -> str:
        """The audit as the tables that the command prints."""
        tables = [found.to_text() for found in self.by_descriptor]
        copies = f"audit: copies of {self.n_images} evaluation images, share found"
        pairs = f"{self.n_lookalikes} pairs of look-alikes, {self.n_unknown} unknown"
        any_bound = ", ".join(f"{n} {s:.2f}" for n, s in self.copy_to_found.items())
        lines = [f"{copies}; {pairs}", *tables]
        return "\n\n".join([*lines, f"by any bound on evaluation images: {any_bound}"])


def check(run: RunFolder) -> None:
    """Raises ValueError if there is nothing to audit."""
    if not run.evaluation_lots:
        raise ValueError("--audit: expected evaluation sets, --eval NAME=GLOB")
    if not _descriptor_to_bounds(run.config.selection):
        raise ValueError("--audit: expected a recipe with bounds on near-duplicates")


def check_lookalikes(path: str) -> None:
    """Raises ValueError unless the file is Parquet with columns `a` and `b`."""
    if not path:
        return
    try:
        with files.open_for_reading(path) as file:
            schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        expected = f"--lookalikes {path}: expected a Parquet file"
        raise ValueError(f"{expected}, found: {reason}") from error
    for name in ("a", "b"):
        known = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
        found = schema.field(name).type if name in schema.names else "no such column"
        if found not in known:
            expected = f"column {name!r} of keys or of encoded images"
            raise ValueError(f"--lookalikes {path}: expected {expected}, found {found}")


def audit(run: RunFolder, lookalikes: str = "", n_images: int = N_IMAGES) -> Audit:
    """Audits a run whose evaluation images are scored.

    `lookalikes` is the path of a Parquet file with pairs of different images in columns
    `a` and `b`: keys of the run, or encoded images.
    """
    originals = list(_read_originals(run, n_images))
    pairs = _Lookalikes.read(run, lookalikes)
    found = tuple(
        _audit_descriptor(run, descriptor, bounds, originals, pairs)
        for descriptor, bounds in _descriptor_to_bounds(run.config.selection).items()
    )
    return Audit(
        n_images=len(originals),
        n_lookalikes=len(pairs.a),
        n_unknown=pairs.n_unknown,
        by_descriptor=found,
        copy_to_found=_find_by_any(found, run.config.selection.evaluation_bounds),
    )


def write(run: RunFolder, found: Audit) -> None:
    """Writes `RUN/audit.json`."""
    data = json.dumps(found.to_json(), indent=1).encode() + b"\n"
    files.write(files.join(run.root, "audit.json"), data)


def _descriptor_to_bounds(
    selection: SelectionConfig,
) -> dict[Descriptor, tuple[float, ...]]:
    found: dict[Descriptor, set[float]] = {}
    for resemblance in (*selection.evaluation_bounds, *selection.pool_bounds):
        bounds = found.setdefault(resemblance.descriptor, set())
        bounds.add(resemblance.max_similarity)
    return {descriptor: tuple(sorted(bounds)) for descriptor, bounds in found.items()}


def _audit_descriptor(
    run: RunFolder,
    descriptor: Descriptor,
    bounds: tuple[float, ...],
    originals: Sequence[np.ndarray],
    lookalikes: "_Lookalikes",
) -> DescriptorAudit:
    image_descriptor = descriptors.load(descriptor, run.config.encoder)
    seen = run.comparing(descriptor)
    paths = index_builder.build("evaluation_sets", seen, run.evaluation_lots)
    sets = tuple(map(ReferenceSet.open, paths))
    copies = {
        name: nearest_similarity(
            sets, _describe(image_descriptor, map(copy, originals))
        )
        for name, copy in NAME_TO_COPY.items()
    }
    a, b = (v.astype(np.float64) for v in lookalikes.vectors(seen, image_descriptor))
    return DescriptorAudit(descriptor, bounds, copies, np.einsum("nd,nd->n", a, b))


def nearest_similarity(sets: Sequence[ReferenceSet], vectors: np.ndarray) -> np.ndarray:
    """The cosine of each vector with the nearest image of all sets: float32 [n]."""
    return np.max([nearest_set.nearest(vectors)[0] for nearest_set in sets], axis=0)


def _describe(
    image_descriptor: ImageDescriptor, pixels: Iterator[np.ndarray]
) -> np.ndarray:
    """Unit vectors of images, rounded like those of the index."""
    vectors, prepared = [np.empty((0, image_descriptor.dim), np.float16)], []
    for rgb in pixels:
        prepared.append(image_descriptor.prepare(rgb))
        if len(prepared) == _IMAGES_PER_BATCH:
            vectors.append(descriptors.unit_vectors(image_descriptor, prepared))
            prepared = []
    if prepared:
        vectors.append(descriptors.unit_vectors(image_descriptor, prepared))
    return normalize(np.concatenate(vectors))[0]


def _find_by_any(
    audits: Sequence[DescriptorAudit], bounds: Sequence[Resemblance]
) -> dict[str, float]:
    """The share of the copies of each kind that are above any of the bounds."""
    by = {found.descriptor: found.copy_to_similarity for found in audits}
    return {
        name: float(
            np.mean(
                np.any([by[r.descriptor][name] > r.max_similarity for r in bounds], 0)
            )
        )
        for name in NAME_TO_COPY
        if bounds
    }


def _read_originals(run: RunFolder, n_images: int) -> Iterator[np.ndarray]:
    """Yields the pixels of the readable evaluation images with the smallest hashes."""
    places, sample_ids = [], []
    for lot in run.evaluation_lots:
        columns = ["sample_id", "error"]
        table = run.pairs(lot.source).read(lot.name, columns=columns)
        rows = np.flatnonzero(np.equal(table["error"], ""))
        places += [(lot, row) for row in rows.tolist()]
        sample_ids += table["sample_id"].take(rows).to_pylist()
    hashes = unit_hashes(sample_ids, "audit")
    chosen = sorted(np.argsort(hashes, kind="stable")[:n_images].tolist())
    lot_to_rows: dict[Lot, list[int]] = {}
    for lot, row in (places[place] for place in chosen):
        lot_to_rows.setdefault(lot, []).append(row)
    for lot, chosen_rows in lot_to_rows.items():
        pairs = from_table(run.pairs(lot.source).take(lot.name, chosen_rows), Pair)
        for data in shards.read_images(lot, pairs):
            yield images.decode(data, run.config.limits).rgb


@dataclasses.dataclass(frozen=True)
class _Lookalikes:
    """Pairs of different images: pixels, or rows in the tables of the run."""

    a: Sequence
    b: Sequence
    n_unknown: int

    @classmethod
    def read(cls, run: RunFolder, path: str) -> Self:
        """Reads pairs; counts those that the run has not scored as unknown."""
        if not path:
            return cls((), (), 0)
        with files.open_for_reading(path) as file:
            table = pq.read_table(file, columns=["a", "b"])
        columns = [table[name].to_pylist() for name in ("a", "b")]
        pairs = list(filter(_is_whole, zip(*columns, strict=True)))
        if pairs and isinstance(pairs[0][0], bytes):
            found: list[tuple] = [
                tuple(_pixels(run, data) for data in pair) for pair in pairs
            ]
        else:
            key_to_place = _find_rows(run, {key for pair in pairs for key in pair})
            found = [tuple(key_to_place.get(key) for key in pair) for pair in pairs]
        known = list(filter(_is_whole, found))
        a, b = zip(*known, strict=True) if known else ((), ())
        return cls(a, b, table.num_rows - len(known))

    def vectors(
        self, run: RunFolder, image_descriptor: ImageDescriptor
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors of the first and of the second image of each pair."""
        if self.a and isinstance(self.a[0], np.ndarray):
            a, b = (
                _describe(image_descriptor, iter(side)) for side in (self.a, self.b)
            )
        else:
            a, b = (
                _read_vectors(run, image_descriptor.dim, side)
                for side in (self.a, self.b)
            )
        return a, b


_Place = tuple[Lot, int]  # and row


def _is_whole(pair: tuple) -> bool:
    return all(side is not None for side in pair)


def _pixels(run: RunFolder, data: bytes) -> np.ndarray | None:
    try:
        return images.decode(data, run.config.limits).rgb
    except images.ImageError:
        return None


def _find_rows(run: RunFolder, keys: set[str]) -> dict[str, _Place]:
    """Key to the first readable row with it, in the pool or an evaluation set."""
    found: dict[str, _Place] = {}
    for lot in (*run.lots, *run.evaluation_lots):
        table = run.pairs(lot.source).read(lot.name, columns=["key", "error"])
        rows = zip(table["key"].to_pylist(), table["error"].to_pylist(), strict=True)
        for row, (key, error) in enumerate(rows):
            if key in keys and not error:
                found.setdefault(key, (lot, row))
    return found


def _read_vectors(run: RunFolder, dim: int, places: Sequence[_Place]) -> np.ndarray:
    """Unit vectors of images from the tables of the run."""
    vectors = np.empty((len(places), dim), np.float32)
    lots = np.array([lot.name for lot, _ in places])
    rows = np.array([row for _, row in places], np.int64)
    for lot in {lot.name: lot for lot, _ in places}.values():
        start = 0
        for matrix in read_matrix_blocks(run, lot):
            end = start + len(matrix)
            mine = np.flatnonzero((lots == lot.name) & (start <= rows) & (rows < end))
            vectors[mine] = matrix[rows[mine] - start]
            start = end
    return normalize(vectors)[0]
