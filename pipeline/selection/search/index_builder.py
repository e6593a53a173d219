"""Builds the indexes of evaluation and seed sets, on the launcher.

In: the embeddings of the units of a set. Out: for each set a FAISS index and a table of
keys under RUN/indexes, named by a fingerprint of what is in them.
"""

import itertools
import logging
from collections.abc import Iterable

import faiss
import numpy as np
import pyarrow as pa

from pipeline.config.fingerprint import fingerprint
from pipeline.engine.run_folder import RunFolder
from pipeline.records import content_hash
from pipeline.selection.search import inverted_lists
from pipeline.selection.search.embeddings import (
    count_rows,
    expect_dim,
    normalize,
    read_matrix,
    stored_dim,
)
from pipeline.selection.search.reference_sets import IndexFiles
from pipeline.selection.unit_decisions import to_objects
from pipeline.sources.shards import Unit
from pipeline.storage import files
from pipeline.storage.tables import UnitTables

_N_SAMPLED_UNITS = 4  # of the pool, to measure the recall of inverted lists with
_N_SAMPLED_ROWS = 512  # of each


def build(
    role: str,
    run: RunFolder,
    units: Iterable[Unit],
    *,
    max_exact: int | None = None,
) -> tuple[IndexFiles, ...]:
    """Builds the indexes of the sets that `units` belong to, unless they are there.

    Sets of more than `max_exact` images get inverted lists; with None, no set does.
    `role` is the name of the sets in the recipe, for errors.

    Raises:
      ValueError: if a set has no readable image, or embeddings of another width than
        the pool's.
    """
    by_name = sorted(units, key=lambda unit: (unit.source.name, unit.shards[0].uri))
    found = []
    for name, group in itertools.groupby(by_name, lambda unit: unit.source.name):
        one = tuple(group)
        is_exact = max_exact is None or count_rows(run, one) <= max_exact
        found.append(_build_set(f"{role}={name}", run, one, is_exact))
    return tuple(found)


def _build_set(
    role: str, run: RunFolder, units: tuple[Unit, ...], is_exact: bool
) -> IndexFiles:
    name = units[0].source.name
    stem = f"{name}-{_fingerprint('index' if is_exact else 'ivf', run, units)}"
    folder = files.join(run.root, "indexes")
    tables = UnitTables(folder)
    paths = IndexFiles(name, files.join(folder, f"{stem}.faiss"), tables.path(stem))
    if files.is_file(paths.index_path):
        return paths
    keys, vectors = _drop_repeats(*_read_set(role, run, units))
    if is_exact:
        index: faiss.Index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
    else:
        index, recall = inverted_lists.build(vectors, _sample_queries(run, vectors))
        logging.warning("%s: searched by inverted lists: %s", role, recall)
        files.write(files.join(folder, f"{stem}.recall.json"), recall.to_bytes())
    tables.write(stem, pa.table({"key": pa.array(keys, pa.string())}))
    files.write(paths.index_path, faiss.serialize_index(index).tobytes())
    return paths


def _sample_queries(run: RunFolder, vectors: np.ndarray) -> np.ndarray:
    """A sample of the vectors of the pool; vectors of the set if the pool has none."""
    units = sorted(run.units, key=lambda unit: content_hash(unit.name.encode()))
    found = [vectors[:0]]
    for unit in units[:_N_SAMPLED_UNITS]:
        some, has_direction = normalize(read_matrix(run, unit)[:_N_SAMPLED_ROWS])
        found.append(some[has_direction])
    queries = np.concatenate(found)
    return queries if len(queries) else vectors[:_N_SAMPLED_ROWS]


def _fingerprint(kind: str, run: RunFolder, units: tuple[Unit, ...]) -> str:
    paths = [run.vectors(unit.source).path(unit.name) for unit in units]
    return fingerprint(kind, [path.removeprefix(run.root) for path in paths])


def _read_set(
    name: str, run: RunFolder, units: tuple[Unit, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Keys and unit vectors of the readable images of a set, sorted by key."""
    tables = [_read_reference_unit(run, unit) for unit in units]
    dim = stored_dim(run, run.units[0] if run.units else units[0])
    for _, embeddings in tables:
        expect_dim(name, embeddings.shape[1], dim)
    keys = np.concatenate([keys for keys, _ in tables])
    vectors, is_readable = normalize(np.concatenate([e for _, e in tables]))
    rows = np.flatnonzero(is_readable)
    if not len(rows):
        raise ValueError(f"{name}: expected at least one readable image")
    rows = rows[np.argsort(keys[rows], kind="stable")]
    return keys[rows], vectors[rows]


def _read_reference_unit(run: RunFolder, unit: Unit) -> tuple[np.ndarray, np.ndarray]:
    keys = run.pairs(unit.source).read(unit.name, columns=["key"])
    return to_objects(keys["key"]), read_matrix(run, unit)


def _drop_repeats(
    keys: np.ndarray, vectors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Drops images that have the same vector as an earlier one."""
    as_bytes = vectors.view(np.dtype((np.void, vectors.itemsize * vectors.shape[1])))
    _, first = np.unique(as_bytes, return_index=True)
    first.sort()
    return keys[first], vectors[first]
