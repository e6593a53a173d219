"""Builds the indexes of evaluation and seed sets, on the launcher.

In: the embeddings of the lots of a set. Out: for each set a FAISS index and a table of
keys under RUN/indexes, named by a fingerprint of what is in them. Vectors are read in
blocks and put in order in a file of the temporary disk, so a set may be larger than the
memory.
"""

import hashlib
import itertools
import logging
import os
import tempfile
from collections.abc import Iterable

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.fingerprint import fingerprint
from pipeline.engine.run_folder import RunFolder
from pipeline.records import content_hash
from pipeline.selection.search import inverted_lists
from pipeline.selection.search.embeddings import (
    count_rows,
    expect_dim,
    normalize,
    read_matrix_blocks,
    stored_dim,
)
from pipeline.selection.search.reference_sets import IndexFiles
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.tables import LotTables

_N_SAMPLED_LOTS = 4  # of the pool, to measure the recall of inverted lists with
_N_SAMPLED_ROWS = 512  # of each
_DIGEST = np.dtype("S16")  # compares as bytes padded with zeros


def build(
    role: str,
    run: RunFolder,
    lots: Iterable[Lot],
    *,
    max_exact: int | None = None,
) -> tuple[IndexFiles, ...]:
    """Builds the indexes of the sets that `lots` belong to, unless they are there.

    Sets of more than `max_exact` images get inverted lists; with None, no set does.
    `role` is the name of the sets in the recipe, for errors.

    Raises:
      ValueError: if a set has no readable image, or embeddings of another width than
        the pool's.
    """
    by_name = sorted(lots, key=lambda lot: (lot.source.name, lot.shards[0].uri))
    found = []
    for name, group in itertools.groupby(by_name, lambda lot: lot.source.name):
        one = tuple(group)
        is_exact = max_exact is None or count_rows(run, one) <= max_exact
        found.append(_build_set(f"{role}={name}", run, one, is_exact))
    return tuple(found)


def _build_set(
    role: str, run: RunFolder, lots: tuple[Lot, ...], is_exact: bool
) -> IndexFiles:
    name = lots[0].source.name
    stem = f"{name}-{_fingerprint('index' if is_exact else 'ivf', run, lots)}"
    folder = files.join(run.root, "indexes")
    tables = LotTables(folder)
    paths = IndexFiles(name, files.join(folder, f"{stem}.faiss"), tables.path(stem))
    if files.is_file(paths.index_path):
        return paths
    keys, place = _order_images(role, run, lots)
    with tempfile.TemporaryDirectory() as temporary:
        local = os.path.join(temporary, "flat.faiss")
        vectors = _write_flat(run, lots, place, local)
        if not is_exact:
            local = os.path.join(temporary, "lists.faiss")
            recall = inverted_lists.write(vectors, _sample_queries(run, vectors), local)
            logging.warning("%s: searched by inverted lists: %s", role, recall)
            files.write(files.join(folder, f"{stem}.recall.json"), recall.to_bytes())
        vectors.flush()
        tables.write(stem, pa.table({"key": keys}))
        files.publish(local, paths.index_path)
    return paths


def _order_images(
    name: str, run: RunFolder, lots: tuple[Lot, ...]
) -> tuple[pa.Array, np.ndarray]:
    """The keys of the different readable images of a set, ascending.

    Also the position in them of each pair of the lots, -1 for other pairs: int64 [n].
    Of images with the same vector the first by key counts. Takes some 100 bytes a pair.
    """
    dim = stored_dim(run, run.lots[0] if run.lots else lots[0])
    columns, digests, readable = [], [], []
    for lot in lots:
        expect_dim(name, stored_dim(run, lot), dim)
        table = run.pairs(lot.source).read(lot.name, columns=["key"])
        columns.append(table["key"].combine_chunks())
        for embeddings in read_matrix_blocks(run, lot):
            vectors, has_direction = normalize(embeddings)
            digests.append(np.array([*map(_digest, vectors)], _DIGEST))
            readable.append(has_direction)
    keys = pa.concat_arrays([pa.array([], pa.string()), *columns])
    rows = np.flatnonzero(np.concatenate([np.empty(0, bool), *readable]))
    if not len(rows):
        raise ValueError(f"{name}: expected at least one readable image")
    rows = rows[pc.array_sort_indices(keys.take(pa.array(rows))).to_numpy()]
    _, first = np.unique(np.concatenate(digests)[rows], return_index=True)
    rows = rows[np.sort(first)]
    place = np.full(len(keys), -1)
    place[rows] = np.arange(len(rows))
    return keys.take(pa.array(rows)), place


def _digest(vector: np.ndarray) -> bytes:
    return hashlib.blake2b(vector.tobytes(), digest_size=16).digest()


def _write_flat(
    run: RunFolder, lots: tuple[Lot, ...], place: np.ndarray, path: str
) -> np.memmap:
    """Writes the file of a flat index of the unit vectors at their positions.

    Returns the vectors, mapped into memory: float32 [m, d].
    """
    dim = stored_dim(run, lots[0])
    n_vectors = int(place.max()) + 1
    head = bytearray(faiss.serialize_index(faiss.IndexFlatIP(dim)).tobytes())
    head[8:16] = np.array([n_vectors]).tobytes()
    head[-8:] = np.array([n_vectors * dim]).tobytes()
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + 4 * n_vectors * dim)
    shape = (n_vectors, dim)
    written = np.memmap(path, np.float32, mode="r+", offset=len(head), shape=shape)
    first = 0
    for lot in lots:
        for embeddings in read_matrix_blocks(run, lot):
            mine = place[first : first + len(embeddings)]
            vectors, _ = normalize(embeddings)
            written[mine[mine >= 0]] = vectors[mine >= 0]
            first += len(embeddings)
    return written


def _sample_queries(run: RunFolder, vectors: np.ndarray) -> np.ndarray:
    """A sample of the vectors of the pool; vectors of the set if the pool has none."""
    lots = sorted(run.lots, key=lambda lot: content_hash(lot.name.encode()))
    found = [np.empty((0, vectors.shape[1]), np.float32)]
    for lot in lots[:_N_SAMPLED_LOTS]:
        for embeddings in itertools.islice(read_matrix_blocks(run, lot), 1):
            some, has_direction = normalize(embeddings[:_N_SAMPLED_ROWS])
            found.append(some[has_direction])
    queries = np.concatenate(found)
    return queries if len(queries) else np.array(vectors[:_N_SAMPLED_ROWS])


def _fingerprint(kind: str, run: RunFolder, lots: tuple[Lot, ...]) -> str:
    paths = [run.vectors(lot.source).path(lot.name) for lot in lots]
    return fingerprint(kind, [path.removeprefix(run.root) for path in paths])
