"""Nearest images of evaluation and seed sets, by indexes that are mapped into memory.

Every set has two files under RUN/indexes, named by what determines them: a FAISS index
of its image embeddings and a table of their keys. The launcher builds them, workers
open them. Indexes are flat, and so exact, up to a size that a recipe sets; beyond it
they have inverted lists, and a third file with the recall that was measured.
"""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import apache_beam as beam
import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.utils.shared import Shared

from pipeline.config.fingerprint import fingerprint
from pipeline.engine.run_folder import RunFolder
from pipeline.engine.worker_checks import this_process as this_process
from pipeline.records import content_hash
from pipeline.selection.search import exact_search, inverted_lists, similarity_cache
from pipeline.selection.unit_decisions import Verdicts, expect_rows, to_objects
from pipeline.sources.shards import Unit
from pipeline.storage import files
from pipeline.storage.tables import UnitTables

_ROWS_PER_SEARCH = 4096  # 8 MB of float32 at 512 dimensions; a block of FAISS
_N_CANDIDATES = 4  # images of inverted lists that may be the nearest, up to rounding
_N_SAMPLED_UNITS = 4  # of the pool, to measure the recall of inverted lists with
_N_SAMPLED_ROWS = 512  # of each


@dataclasses.dataclass(frozen=True)
class SetFiles:
    """Where the index and the keys of one evaluation or seed set lie."""

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
    def open(cls, paths: SetFiles) -> "ReferenceSet":
        """Maps the index into memory, shared by all processes of the machine."""
        with files.open_for_reading(paths.keys_path) as file:
            keys = to_objects(pq.read_table(file)["key"])
        stem = files.split(paths.index_path)[1].removesuffix(".faiss")
        return cls(paths.set_name, open_index(paths.index_path), keys, stem)

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """Of the images, in the order of `keys`: float32 [m, d], memory of the index.

        Only a flat index has them so.
        """
        assert isinstance(self.index, faiss.IndexFlat)
        n, dim = self.index.ntotal, self.index.d
        return faiss.rev_swig_ptr(self.index.get_xb(), n * dim).reshape(n, dim)

    def nearest(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Similarity and position of the image nearest to each of n unit vectors.

        Of equally similar images the first by key is the nearest. Inverted lists are
        exact about those images only that they find.
        """
        if isinstance(self.index, faiss.IndexFlat):
            return exact_search.nearest(queries, self.vectors)
        _, images = self.index.search(queries, min(_N_CANDIDATES, self.index.ntotal))
        # The lists may hold fewer: the best one stands in for what is missing.
        images = np.where(images < 0, images[:, :1].clip(0), images)
        query = np.repeat(np.arange(len(queries)), images.shape[1])
        image = images.ravel()
        found, every = self.index.reconstruct_batch(image), np.arange(len(image))
        similarity = exact_search.cosines(queries, found, query, every)
        return exact_search.best(query, image, similarity)


@dataclasses.dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest image of each of s sets, for n queries.

    Similarities are cosines in [-1, 1]; NaN for a query without an embedding.
    """

    sets: Sequence[ReferenceSet]
    similarity: np.ndarray  # float64 [s, n]
    image: np.ndarray  # int64 [s, n], position in the set

    @property
    def best_similarity(self) -> np.ndarray:
        """Over all sets: float64 [n]."""
        return self.similarity.max(axis=0)

    def best_names(self, queries: np.ndarray) -> list[str]:
        """`<set>:<key>` of the nearest image of all sets, for some queries.

        The first of equally similar ones, by set.
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


class WithSets(beam.DoFn):
    """A step that has the sets at its hand, shared by the threads of a worker."""

    def __init__(self, sets: tuple[SetFiles, ...]) -> None:
        self._paths = sets
        self._shared = Shared()
        self._launcher = this_process()

    def setup(self) -> None:
        self._opened = self._shared.acquire(lambda: _OpenSets(self._paths))

    def sets(self) -> Sequence[ReferenceSet]:
        """To call in `process`, in the thread that searches."""
        limit_threads(self._launcher)
        return self._opened.sets


class Search(WithSets):
    """Lets `judge` decide on verdicts with a search of the sets at its hand.

    `judge` gets the verdicts and a function from rows to `Nearest`. Maps
    PCollection[Verdicts] to PCollection[Verdicts].
    """

    def __init__(
        self,
        run: RunFolder,
        sets: tuple[SetFiles, ...],
        judge: Callable[[Verdicts, Callable[[np.ndarray], Nearest]], Verdicts],
    ) -> None:
        super().__init__(sets)
        self._run = run
        self._judge = judge

    def process(self, verdicts: Verdicts) -> Iterator[Verdicts]:
        search = functools.partial(find_nearest, self.sets(), self._run, verdicts)
        yield self._judge(verdicts, search)


class _OpenSets:
    """What the threads of a worker share; Beam holds it by a weak reference."""

    def __init__(self, paths: tuple[SetFiles, ...]) -> None:
        self.sets = tuple(map(ReferenceSet.open, paths))


def find_nearest(
    sets: Sequence[ReferenceSet], run: RunFolder, verdicts: Verdicts, rows: np.ndarray
) -> Nearest:
    """Compares some pairs of a unit with the sets, unless that was done before."""
    tables = [run.similarities(verdicts.unit.source, one.fingerprint) for one in sets]
    name, n_pairs = verdicts.unit.name, len(verdicts.outcome)
    known = [similarity_cache.read(each, name, n_pairs) for each in tables]
    missing = [rows[image[rows] == similarity_cache.UNKNOWN] for _, image in known]
    found = _search(sets, run, verdicts, missing)
    for number, unknown in enumerate(missing):
        if len(unknown):
            similarity_cache.add(tables[number], name, unknown, *found[number])
            similarity, image = known[number]
            similarity[unknown], image[unknown] = found[number]
    similarities_of_sets = np.stack([similarity[rows] for similarity, _ in known])
    images_of_sets = np.stack([image[rows] for _, image in known])
    return Nearest(sets, similarities_of_sets.astype(np.float64), images_of_sets)


def _search(
    sets: Sequence[ReferenceSet],
    run: RunFolder,
    verdicts: Verdicts,
    missing: Sequence[np.ndarray],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Similarity and image of the rows that miss them, for each set.

    Embeddings are read once for all sets.
    """
    found = [
        (np.full(len(rows), np.nan, np.float32), np.zeros(len(rows), np.int64))
        for rows in missing
    ]
    wanted = functools.reduce(np.union1d, missing)
    blocks = _embeddings_of(run, verdicts, wanted) if len(wanted) else ()
    for place, embeddings in blocks:
        vectors, has_embedding = normalized(embeddings)
        read = wanted[place[has_embedding]]
        vectors = vectors[has_embedding]
        for each, rows, (similarity, image) in zip(sets, missing, found, strict=True):
            _expect_dim(each.name, embeddings.shape[1], each.index.d)
            _, mine, theirs = np.intersect1d(rows, read, True, return_indices=True)
            if len(mine):
                similarity[mine], image[mine] = each.nearest(vectors[theirs])
    return found


def read_vectors(
    run: RunFolder, verdicts: Verdicts, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Those of `rows` with an embedding, and their vectors: float32, of length one."""
    found = _embeddings_of(run, verdicts, rows)
    return _with_direction(rows, ((place, *normalized(e)) for place, e in found))


def read_embeddings(
    run: RunFolder, verdicts: Verdicts, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Those of `rows` with an embedding, and these as they are stored."""
    found = _embeddings_of(run, verdicts, rows)
    return _with_direction(rows, ((place, e, normalized(e)[1]) for place, e in found))


def _with_direction(
    rows: np.ndarray, found: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Puts parts together: places in `rows`, vectors, and which have a direction."""
    parts = [(rows[place[has]], vectors[has]) for place, vectors, has in found]
    parts = parts or [(rows[:0], np.empty((0, 0), np.float16))]
    with_embedding, matrices = map(np.concatenate, zip(*parts, strict=True))
    return with_embedding, matrices


def normalized(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as float32 of length one, and which rows have a direction."""
    vectors = embeddings.astype(np.float32)
    length = np.linalg.norm(vectors, axis=1)
    has_direction = np.isfinite(length) & (length > 0)
    length = np.where(has_direction, length, 1)
    return np.ascontiguousarray(vectors / length[:, None]), has_direction


def build(
    role: str,
    run: RunFolder,
    units: Iterable[Unit],
    *,
    max_exact: int | None = None,
) -> tuple[SetFiles, ...]:
    """Builds the indexes of the sets that `units` belong to, unless they are there.

    Sets of more than `max_exact` images get inverted lists; None: no set does.

    Raises:
      ValueError: if a set has no readable image, or embeddings of another width than
        the pool's; `role` is the name of the sets in the configuration.
    """
    by_name = sorted(units, key=lambda unit: (unit.source.name, unit.uri))
    found = []
    for name, group in itertools.groupby(by_name, lambda unit: unit.source.name):
        one = tuple(group)
        is_exact = max_exact is None or n_pairs(run, one) <= max_exact
        found.append(_build_set(f"{role}={name}", run, one, is_exact))
    return tuple(found)


def _build_set(
    role: str, run: RunFolder, units: tuple[Unit, ...], is_exact: bool
) -> SetFiles:
    name = units[0].source.name
    stem = f"{name}-{_fingerprint('index' if is_exact else 'ivf', run, units)}"
    folder = files.join(run.root, "indexes")
    tables = UnitTables(folder)
    paths = SetFiles(name, files.join(folder, f"{stem}.faiss"), tables.path(stem))
    if files.is_file(paths.index_path):
        return paths
    keys, vectors = _distinct(*_read_set(role, run, units))
    if is_exact:
        index: faiss.Index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
    else:
        index, recall = inverted_lists.build(vectors, _queries(run, vectors))
        logging.warning("%s: searched by inverted lists: %s", role, recall)
        files.write(files.join(folder, f"{stem}.json"), recall.to_bytes())
    tables.write(stem, pa.table({"key": pa.array(keys, pa.string())}))
    files.write(paths.index_path, faiss.serialize_index(index).tobytes())
    return paths


def n_pairs(run: RunFolder, units: Iterable[Unit]) -> int:
    """Rows of the tables of pairs, readable or not."""
    return sum(_n_rows(run.pairs(unit.source).path(unit.name)) for unit in units)


def _n_rows(path: str) -> int:
    with files.open_for_reading(path) as file:
        return pq.read_metadata(file).num_rows


def _queries(run: RunFolder, vectors: np.ndarray) -> np.ndarray:
    """Some vectors of the pool, those of the set where the pool has none."""
    units = sorted(run.units, key=lambda unit: content_hash(unit.shard_name.encode()))
    found = [vectors[:0]]
    for unit in units[:_N_SAMPLED_UNITS]:
        some, has_direction = normalized(read_matrix(run, unit)[:_N_SAMPLED_ROWS])
        found.append(some[has_direction])
    queries = np.concatenate(found)
    return queries if len(queries) else vectors[:_N_SAMPLED_ROWS]


def _fingerprint(kind: str, run: RunFolder, units: tuple[Unit, ...]) -> str:
    paths = [run.vectors(unit.source).path(unit.name) for unit in units]
    return fingerprint(kind, [path.removeprefix(run.root) for path in paths])


def _read_set(
    name: str, run: RunFolder, units: tuple[Unit, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Keys and unit vectors of the readable images of a set, by key."""
    tables = [_read_reference_unit(run, unit) for unit in units]
    dim = _dim(_read_schema(run, run.units[0] if run.units else units[0]))
    for _, embeddings in tables:
        _expect_dim(name, embeddings.shape[1], dim)
    keys = np.concatenate([keys for keys, _ in tables])
    vectors, is_readable = normalized(np.concatenate([e for _, e in tables]))
    rows = np.flatnonzero(is_readable)
    if not len(rows):
        raise ValueError(f"{name}: expected at least one readable image")
    rows = rows[np.argsort(keys[rows], kind="stable")]
    return keys[rows], vectors[rows]


def _read_reference_unit(run: RunFolder, unit: Unit) -> tuple[np.ndarray, np.ndarray]:
    keys = run.pairs(unit.source).read(unit.name, columns=["key"])
    return to_objects(keys["key"]), read_matrix(run, unit)


def read_matrix(run: RunFolder, unit: Unit) -> np.ndarray:
    """The vectors of all pairs of a unit, as they are stored."""
    table = run.vectors(unit.source).read(unit.name, columns=["embedding"])
    return _to_matrix(table["embedding"].combine_chunks())


def _distinct(keys: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without the images that have the vector of an earlier one."""
    as_bytes = vectors.view(np.dtype((np.void, vectors.itemsize * vectors.shape[1])))
    _, first = np.unique(as_bytes, return_index=True)
    first.sort()
    return keys[first], vectors[first]


def _embeddings_of(
    run: RunFolder, verdicts: Verdicts, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields places in `rows`, which ascend, and the embeddings of these pairs."""
    path = run.vectors(verdicts.unit.source).path(verdicts.unit.name)
    with files.open_for_reading(path) as file:
        parquet = pq.ParquetFile(file)
        expect_rows(path, parquet.metadata.num_rows, verdicts)
        first_row = 0
        for batch in parquet.iter_batches(_ROWS_PER_SEARCH, columns=["embedding"]):
            start, end = np.searchsorted(rows, [first_row, first_row + len(batch)])
            if start < end:
                matrix = _to_matrix(batch.column("embedding"))
                yield np.arange(start, end), matrix[rows[start:end] - first_row]
            first_row += len(batch)


def _to_matrix(column: pa.FixedSizeListArray) -> np.ndarray:
    values = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), column.type.list_size)


def _read_schema(run: RunFolder, unit: Unit) -> pa.Schema:
    with files.open_for_reading(run.vectors(unit.source).path(unit.name)) as file:
        return pq.read_schema(file)


def _dim(schema: pa.Schema) -> int:
    return schema.field("embedding").type.list_size


def embedding_dim(run: RunFolder) -> int | None:
    """Numbers of an image embedding; None while the first shard has none."""
    unit = run.units[0]
    path = run.embeddings(unit.source).path(unit.name)
    return _dim(_read_schema(run, unit)) if files.is_file(path) else None


def _expect_dim(name: str, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(
            f"{name}: embeddings of {found} dimensions, expected {expected} like the"
            " pool's: score both with one encoder"
        )


def open_index(path: str) -> faiss.Index:
    """Maps an index into memory, shared by all processes of the machine."""
    return faiss.read_index(files.local_copy(path), faiss.IO_FLAG_MMAP_IFC)


def limit_threads(launcher: tuple[str, int]) -> None:
    """Leaves one thread to each worker process: there is one a core.

    `launcher` is `this_process` where the step was made. To call in the thread that
    searches: OpenMP keeps this setting by thread.
    """
    if this_process() != launcher:
        faiss.omp_set_num_threads(1)
