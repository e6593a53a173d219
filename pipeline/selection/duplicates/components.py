"""Connected components of near-duplicates, found cell by cell and then merged.

In: the images of each cell with their vectors. Out: for each unit, the images to drop
and the images kept in their place. The outcome does not depend on the order of work:
similarities are computed in double precision, and ties are broken by sample id.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pipeline.selection.search.embeddings import normalize
from pipeline.selection.search.exact_search import cosines
from pipeline.selection.unit_decisions import to_hex

_PRODUCTS_PER_BLOCK = 2**23  # 32 MB of float32, and as many places at worst
_SLACK = 1e-4  # far above the rounding of a product in single precision


@dataclasses.dataclass(frozen=True, eq=False)
class Members:
    """The images of one unit in one cell."""

    unit_name: str
    row: np.ndarray  # int64 [n]
    sample_id: np.ndarray  # uint64 [n, 2]
    is_anchor: np.ndarray  # bool [n], dropped already; drops its whole component
    embedding: np.ndarray  # float16 [n, d], as stored


@dataclasses.dataclass(frozen=True, eq=False)
class SimilarityEdges:
    """Images with a near-duplicate, once per cell and descriptor that finds one."""

    unit_names: tuple[str, ...]
    unit: np.ndarray  # int64 [n], position in unit_names
    row: np.ndarray  # int64 [n]
    sample_id: np.ndarray  # uint64 [n, 2]
    is_anchor: np.ndarray  # bool [n]
    component: np.ndarray  # int64 [n], within its cell
    similarity: np.ndarray  # float32 [n], with the most similar image of it
    by: np.ndarray  # int64 [n], number of the descriptor


def find_edges(
    members: Iterable[Members], by: int, max_similarity: float
) -> Iterator[SimilarityEdges]:
    """Yields the images of one cell that have a near-duplicate there, if any has.

    An image with k near-duplicates gives k + 1 entries, not one for each pair.
    """
    blocks = sorted(members, key=lambda block: block.unit_name)
    vectors, _ = normalize(np.concatenate([block.embedding for block in blocks]))
    pairs, similarity = similar_pairs(vectors, max_similarity)
    if not len(pairs):
        return
    linked, ends = np.unique(pairs, return_inverse=True)
    ends = ends.reshape(pairs.shape)
    best = np.full(len(linked), -1, np.float32)
    np.maximum.at(best, ends, similarity[:, None])
    unit = np.repeat(np.arange(len(blocks)), [len(block.row) for block in blocks])
    yield SimilarityEdges(
        unit_names=tuple(block.unit_name for block in blocks),
        unit=unit[linked],
        row=np.concatenate([block.row for block in blocks])[linked],
        sample_id=np.concatenate([block.sample_id for block in blocks])[linked],
        is_anchor=np.concatenate([block.is_anchor for block in blocks])[linked],
        component=_components(ends, len(linked)),
        similarity=best,
        by=np.full(len(linked), by),
    )


def similar_pairs(
    vectors: np.ndarray, max_similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of unit vectors whose cosine is above `max_similarity`.

    Returns positions, int64 [n, 2], the smaller one first, and cosines, float32 [n].
    Works block by block, so that memory is bounded unless nearly all pairs are similar.
    """
    pairs, similarities = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    n_rows = max(1, _PRODUCTS_PER_BLOCK // max(len(vectors), 1))
    for start in range(0, len(vectors), n_rows):
        products = vectors[start : start + n_rows] @ vectors[start:].T
        first, second = np.nonzero(products > max_similarity - _SLACK)
        candidates = np.stack([first, second], axis=1)[first < second] + start
        similarity = cosines(vectors, vectors, *candidates.T)
        is_similar = similarity > max_similarity
        pairs.append(candidates[is_similar])
        similarities.append(similarity[is_similar])
    return np.concatenate(pairs), np.concatenate(similarities)


def _components(pairs: np.ndarray, n_nodes: int) -> np.ndarray:
    """The component of each node, as a number."""
    ones = np.ones(len(pairs), np.int8)
    # Half a second that commands with nothing to merge do without.
    import scipy.sparse
    from scipy.sparse import csgraph

    graph = scipy.sparse.coo_array((ones, pairs.T), (n_nodes, n_nodes))
    return csgraph.connected_components(graph, directed=False)[1].astype(np.int64)


def merge_components(blocks: Sequence[SimilarityEdges]) -> SimilarityEdges:
    """Merges the components of all blocks; each image occurs once in the result.

    Of several similarities of an image, the largest of its first descriptor is kept.
    """
    if not blocks:
        return _no_edges()
    edges = _concatenate(blocks)
    places = np.stack([edges.unit, edges.row], axis=1)
    _, node = np.unique(places, axis=0, return_inverse=True)
    node = node.ravel()
    n_nodes, n_groups = node.max(initial=-1) + 1, edges.component.max(initial=-1) + 1
    both = np.stack([node, edges.component + n_nodes], axis=1)
    component = _components(both, n_nodes + n_groups)
    order = np.lexsort((-edges.similarity, edges.by, node))  # takes its last key first
    first = order[np.unique(node[order], return_index=True)[1]]
    return dataclasses.replace(_take(edges, first), component=component[node[first]])


def _no_edges() -> SimilarityEdges:
    none, no_ids = np.empty(0, np.int64), np.empty((0, 2), np.uint64)
    is_anchor, similarity = np.empty(0, bool), np.empty(0, np.float32)
    return SimilarityEdges((), none, none, no_ids, is_anchor, none, similarity, none)


def _concatenate(blocks: Sequence[SimilarityEdges]) -> SimilarityEdges:
    names = sorted({name for block in blocks for name in block.unit_names})
    name_to_unit = {name: unit for unit, name in enumerate(names)}
    units, components, n_components = [], [], 0
    for block in blocks:
        here = np.array([name_to_unit[name] for name in block.unit_names], np.int64)
        units.append(here[block.unit])
        components.append(block.component + n_components)
        n_components += block.component.max(initial=-1) + 1
    return SimilarityEdges(
        unit_names=tuple(names),
        unit=np.concatenate(units),
        row=np.concatenate([block.row for block in blocks]),
        sample_id=np.concatenate([block.sample_id for block in blocks]),
        is_anchor=np.concatenate([block.is_anchor for block in blocks]),
        component=np.concatenate(components),
        similarity=np.concatenate([block.similarity for block in blocks]),
        by=np.concatenate([block.by for block in blocks]),
    )


def _take(edges: SimilarityEdges, places: np.ndarray) -> SimilarityEdges:
    arrays = {
        field.name: getattr(edges, field.name)[places]
        for field in dataclasses.fields(edges)
        if field.name != "unit_names"
    }
    return SimilarityEdges(unit_names=edges.unit_names, **arrays)


@dataclasses.dataclass(frozen=True, eq=False)
class Duplicates:
    """Rows of one unit that are near-duplicates of an image that is kept."""

    row: np.ndarray  # int64 [n]
    kept_id: np.ndarray  # uint64 [n, 2]
    similarity: np.ndarray  # float32 [n], with the most similar image
    by: np.ndarray  # int64 [n], number of the descriptor


def sort_by_component(edges: SimilarityEdges) -> tuple[SimilarityEdges, np.ndarray]:
    """Sorts images by component; returns them and where each component starts.

    Within a component anchors come first, then images by sample id, name of the unit
    and row.
    """
    order = np.lexsort(
        (
            edges.row,
            edges.unit,
            *edges.sample_id.T[::-1],
            ~edges.is_anchor,
            edges.component,
        )
    )
    edges = _take(edges, order)
    return edges, np.unique(edges.component, return_index=True)[1]


def find_duplicates(
    edges: SimilarityEdges, *, of_anchors: bool
) -> Iterator[tuple[str, Duplicates]]:
    """Yields (unit name, duplicates to drop).

    These are all images of a component but the first. With `of_anchors` they are all
    images but the anchors of the components that have an anchor.
    """
    edges, starts = sort_by_component(edges)
    sizes = np.diff(np.append(starts, len(edges.row)))
    first = np.repeat(starts, sizes)
    if of_anchors:
        is_dropped = edges.is_anchor[first] & ~edges.is_anchor
    else:
        is_dropped = first != np.arange(len(first))
    for unit, unit_name in enumerate(edges.unit_names):
        mine = np.flatnonzero(is_dropped & (edges.unit == unit))
        if len(mine):
            yield (
                unit_name,
                Duplicates(
                    row=edges.row[mine],
                    kept_id=edges.sample_id[first[mine]],
                    similarity=edges.similarity[mine],
                    by=edges.by[mine],
                ),
            )


def component_sizes(edges: SimilarityEdges, alarm_size: int) -> dict:
    """Counts components by size, and lists those of at least `alarm_size` images."""
    edges, starts = sort_by_component(edges)
    sizes = np.diff(np.append(starts, len(edges.row)))
    values, counts = np.unique(sizes, return_counts=True)
    large = [
        {"size": int(sizes[i]), "first": to_hex(edges.sample_id[starts[i]])}
        for i in np.argsort(-sizes, kind="stable")
        if sizes[i] >= alarm_size
    ]
    return {
        "images": len(edges.row),
        "components": len(sizes),
        "size_to_components": dict(zip(map(str, values), counts.tolist(), strict=True)),
        "alarm_size": alarm_size,
        "giants": large,
    }


def cosine_to_distance(max_similarity: float) -> float:
    """The Euclidean distance of two unit vectors, from their cosine."""
    return math.sqrt(max(0.0, 2 - 2 * max_similarity))
