"""The nearest images of evaluation and seed sets, from indexes mapped into memory.

In: decisions on pairs and the files of indexes, which `index_builder` made. Out: the
nearest image of each set for each pair. Indexes are flat, and so exact, up to a size
that a recipe sets; larger ones have inverted lists, and a file with their measured
recall.
"""

import dataclasses
import functools
from collections.abc import Sequence

import faiss
import numpy as np
import pyarrow.parquet as pq

from pipeline.engine.run_folder import RunFolder
from pipeline.selection.lot_decisions import LotDecisions, to_objects
from pipeline.selection.search import exact_search, similarity_cache
from pipeline.selection.search.embeddings import expect_dim, normalize, read_blocks
from pipeline.storage import files

_N_CANDIDATES = 4  # of inverted lists, any of which may be the nearest, up to rounding


@dataclasses.dataclass(frozen=True)
class IndexFiles:
    """The files of one evaluation or seed set: its index and its keys."""

    set_name: str
    index_path: str
    keys_path: str


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceSet:
    """The distinct images of one set, by key."""

    name: str
    index: faiss.Index
    keys: np.ndarray  # str, ascending
    fingerprint: str = ""  # of the images in it

    @classmethod
    def open(cls, paths: IndexFiles) -> "ReferenceSet":
        """Maps the index into memory, shared by all processes of the machine."""
        with files.open_for_reading(paths.keys_path) as file:
            keys = to_objects(pq.read_table(file)["key"])
        stem = files.split(paths.index_path)[1].removesuffix(".faiss")
        return cls(paths.set_name, open_index(paths.index_path), keys, stem)

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """The vectors of a flat index, in the order of `keys`: float32 [m, d].

        A view of the index's memory, not a copy.
        """
        assert isinstance(self.index, faiss.IndexFlat)
        n, dim = self.index.ntotal, self.index.d
        return faiss.rev_swig_ptr(self.index.get_xb(), n * dim).reshape(n, dim)

    def nearest(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and position of the image nearest to each of n unit vectors.

        Of equally similar images, the first by key counts. Inverted lists may miss the
        nearest image; the cosine of the image that they find is exact.
        """
        if isinstance(self.index, faiss.IndexFlat):
            return exact_search.nearest(queries, self.vectors)
        _, images = self.index.search(queries, min(_N_CANDIDATES, self.index.ntotal))
        # The lists may hold fewer images: repeat the best one.
        images = np.where(images < 0, images[:, :1].clip(0), images)
        query = np.repeat(np.arange(len(queries)), images.shape[1])
        image = images.ravel()
        found, every = self.index.reconstruct_batch(image), np.arange(len(image))
        similarity = exact_search.cosines(queries, found, query, every)
        return exact_search.best(query, image, similarity)


@dataclasses.dataclass(frozen=True, eq=False)
class NearestImages:
    """The nearest image in each of s sets, for n queries.

    Similarities are cosines in [-1, 1]; NaN for a query without an embedding.
    """

    sets: Sequence[ReferenceSet]
    similarity: np.ndarray  # float64 [s, n]
    image: np.ndarray  # int64 [s, n], position in the set

    @property
    def best_similarity(self) -> np.ndarray:
        """The cosine with the nearest image of all sets: float64 [n]."""
        return self.similarity.max(axis=0)

    def best_names(self, queries: np.ndarray) -> list[str]:
        """`<set>:<key>` of the nearest image of all sets, for some queries.

        Of equally similar images, that of the first set counts.
        """
        similarity = self.similarity[:, queries]
        best = similarity.argmax(axis=0)
        images = self.image[best, queries]
        return [
            "no embedding"
            if np.isnan(s)
            else f"{self.sets[b].name}:{self.sets[b].keys[i]}"
            for s, b, i in zip(similarity.max(axis=0), best, images, strict=True)
        ]


def find_nearest(
    sets: Sequence[ReferenceSet],
    run: RunFolder,
    decisions: LotDecisions,
    rows: np.ndarray,
) -> NearestImages:
    """Compares some pairs of a lot with the sets, and stores the similarities.

    Similarities that are stored already are not computed again.
    """
    tables = [run.similarities(decisions.lot.source, one.fingerprint) for one in sets]
    name, n_pairs = decisions.lot.name, len(decisions.outcome)
    known = [similarity_cache.read(each, name, n_pairs) for each in tables]
    missing = [rows[image[rows] == similarity_cache.UNKNOWN] for _, image in known]
    found = _search(sets, run, decisions, missing)
    for number, unknown in enumerate(missing):
        if len(unknown):
            similarity_cache.add(tables[number], name, unknown, *found[number])
            similarity, image = known[number]
            similarity[unknown], image[unknown] = found[number]
    similarities_of_sets = np.stack([similarity[rows] for similarity, _ in known])
    images_of_sets = np.stack([image[rows] for _, image in known])
    return NearestImages(sets, similarities_of_sets.astype(np.float64), images_of_sets)


def _search(
    sets: Sequence[ReferenceSet],
    run: RunFolder,
    decisions: LotDecisions,
    missing: Sequence[np.ndarray],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Similarity and nearest image of the rows that each set is missing.

    Embeddings are read once for all sets.
    """
    found = [
        (np.full(len(rows), np.nan, np.float32), np.zeros(len(rows), np.int64))
        for rows in missing
    ]
    wanted = functools.reduce(np.union1d, missing)
    blocks = read_blocks(run, decisions, wanted) if len(wanted) else ()
    for place, embeddings in blocks:
        vectors, has_embedding = normalize(embeddings)
        read = wanted[place[has_embedding]]
        vectors = vectors[has_embedding]
        for each, rows, (similarity, image) in zip(sets, missing, found, strict=True):
            expect_dim(each.name, embeddings.shape[1], each.index.d)
            _, mine, theirs = np.intersect1d(rows, read, True, return_indices=True)
            if len(mine):
                similarity[mine], image[mine] = each.nearest(vectors[theirs])
    return found


def open_index(path: str) -> faiss.Index:
    """Maps an index into memory, shared by all processes of the machine."""
    return faiss.read_index(files.local_copy(path), faiss.IO_FLAG_MMAP_IFC)
