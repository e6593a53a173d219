"""Near-duplicates within the pool.

K-means divides the pool into cells, and the images of a cell are compared with one
another. Similar images make up components, of which one image is kept. Only here do
embeddings cross a shuffle, as they are stored. The transforms map
PCollection[UnitDecisions] to PCollection[UnitDecisions].
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsSingleton

from pipeline.config.duplicates import (
    Cells,
    EvaluationDuplicates,
    PoolDuplicates,
    Resemblance,
)
from pipeline.config.fingerprint import fingerprint
from pipeline.config.selection import SelectionConfig
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection.duplicates import components
from pipeline.selection.duplicates.components import (
    Duplicates,
    Members,
    SimilarityEdges,
)
from pipeline.selection.duplicates.kmeans_cells import find_cells
from pipeline.selection.search import kmeans
from pipeline.selection.search.embeddings import normalize, read_embeddings
from pipeline.selection.unit_decisions import (
    UnitDecisions,
    read_rows,
    to_hex,
    to_words,
)
from pipeline.selection.unit_join import join_by_unit
from pipeline.storage import files


@dataclasses.dataclass(frozen=True)
class Rule:
    """How components are found, and what is dropped of them."""

    by: tuple[Resemblance, ...]
    cells: Cells
    alarm_size: int
    reason: DropReason
    of_anchors: bool  # drops the components of dropped images alone, in any source

    @classmethod
    def of_pool(cls, config: PoolDuplicates) -> "Rule":
        """The rule for near-duplicates within the pool."""
        settings = (config.by, config.cells, config.alarm_size)
        return cls(*settings, DropReason.NEAR_DUPLICATE, of_anchors=False)

    @classmethod
    def of_evaluation(
        cls, by: tuple[Resemblance, ...], config: EvaluationDuplicates
    ) -> "Rule":
        """The rule for components with a near-duplicate of an evaluation image."""
        settings = (by, config.cells, config.alarm_size)
        return cls(*settings, DropReason.NEAR_EVALUATION, of_anchors=True)


def component_rules(selection: SelectionConfig) -> tuple[Rule, ...]:
    """The rules of a recipe, in the order of their steps."""
    rules = []
    evaluation, pool = selection.evaluation_duplicates, selection.pool_duplicates
    if evaluation and evaluation.whole_component:
        rules.append(Rule.of_evaluation(selection.evaluation_bounds, evaluation))
    if pool:
        rules.append(Rule.of_pool(pool))
    return tuple(rules)


class DropLinked(beam.PTransform):
    """Drops images of components by one rule, and writes the sizes of components.

    `run` must list its units, which enter the names of the files of centroids.
    """

    def __init__(self, run: RunFolder, rule: Rule) -> None:
        super().__init__()
        self._run = run
        self._rule = rule

    def expand(self, decisions: beam.PCollection[UnitDecisions]) -> beam.PCollection:
        rule = self._rule
        by = [self._find_edges(decisions, number) for number in range(len(rule.by))]
        path = files.join(self._run.decisions.folder, f"{rule.reason}_components.json")
        duplicates = (
            by
            | "Take all edges" >> beam.Flatten()
            | "Collect edges" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
            | "Merge components" >> beam.FlatMap(resolve, rule, path)
        )
        joined = join_by_unit(decisions, duplicates, "duplicates")
        return joined | "Drop duplicates" >> beam.MapTuple(
            functools.partial(drop, rule)
        )

    def _find_edges(
        self, decisions: beam.PCollection[UnitDecisions], number: int
    ) -> beam.PCollection[SimilarityEdges]:
        """The similar images by one descriptor."""
        rule, resemblance = self._rule, self._rule.by[number]
        name = resemblance.descriptor.name
        record = record_path(self._run, resemblance, rule)
        run = self._run.without_units().comparing(resemblance.descriptor)
        pool = decisions
        if rule.of_anchors:
            pool = decisions | f"Train on all sources by {name}" >> beam.Map(
                make_all_droppable
            )
        path = AsSingleton(
            pool
            | f"Train cells by {name}" >> kmeans.TrainCentroids(run, rule.cells, record)
        )
        return (
            decisions
            | f"Enter cells by {name}"
            >> beam.ParDo(AssignToCells(run, rule, resemblance), path)
            | f"Bring cells together by {name}" >> beam.GroupByKey()
            | f"Take cells by {name}" >> beam.Values()
            | f"Compare in cells by {name}"
            >> beam.FlatMap(components.find_edges, number, resemblance.max_similarity)
        )


def record_path(run: RunFolder, resemblance: Resemblance, rule: Rule) -> str:
    """The path of the record of the centroids, named by what determines them.

    Bounds on similarity do not enter it, except those of earlier steps.
    """
    selection = dataclasses.replace(
        run.config.selection,
        retrieval=None,
        pool_duplicates=None,
    )
    config = dataclasses.replace(run.config, selection=selection)
    pool = dataclasses.replace(run, config=config, seed_units=())
    training = dataclasses.replace(rule.cells, max_per_image=1)
    tables = [
        run.descriptions(source, resemblance.descriptor).folder.removeprefix(run.root)
        for source in run.config.sources
    ]
    parts = (pool.decisions_fingerprint, rule.reason, training, tables)
    name = f"{fingerprint('cells', *parts)}.json"
    return files.join(run.root, "clusters", name)


def make_all_droppable(decisions: UnitDecisions) -> UnitDecisions:
    """The same decisions, with all kept rows droppable."""
    source = dataclasses.replace(decisions.unit.source, keep_all=False)
    unit = dataclasses.replace(decisions.unit, source=source)
    return dataclasses.replace(decisions, unit=unit)


class AssignToCells(kmeans.DoFnWithCentroids):
    """Yields (cell, images of one unit in it)."""

    def __init__(self, run: RunFolder, rule: Rule, resemblance: Resemblance) -> None:
        super().__init__()
        self._run = run
        self._rule = rule
        self._reach = components.cosine_to_distance(resemblance.max_similarity)

    def process(
        self, decisions: UnitDecisions, path: str
    ) -> Iterator[tuple[int, Members]]:
        members = read_members(decisions, self._run, of_anchors=self._rule.of_anchors)
        index = self.centroids(path).index
        if not len(members.row) or not index.ntotal:
            return
        image, cell = find_cells(
            normalize(members.embedding)[0],
            index.reconstruct_n(0, index.ntotal),
            self._reach,
            self._rule.cells.max_per_image,
        )
        order = np.argsort(cell, kind="stable")
        found, starts = np.unique(cell[order], return_index=True)
        for key, mine in zip(found, np.split(image[order], starts[1:]), strict=True):
            yield int(key), _take(members, mine)


def read_members(
    decisions: UnitDecisions, run: RunFolder, *, of_anchors: bool
) -> Members:
    """Reads the images of a unit that are compared.

    Within the pool these are the droppable ones. With anchors they are all kept images,
    and those that were dropped as near an evaluation image.
    """
    is_anchor = decisions.is_dropped_for(DropReason.NEAR_EVALUATION)
    is_anchor &= ~np.isnan(decisions.value)
    anchors = np.flatnonzero(is_anchor) if of_anchors else decisions.kept_rows[:0]
    rows = decisions.kept_rows if of_anchors else decisions.droppable_rows
    rows, embedding = read_embeddings(run, decisions, np.union1d(rows, anchors))
    ids = read_rows(run.pairs(decisions.unit.source), decisions, rows, "sample_id")
    return Members(
        unit_name=decisions.unit.name,
        row=rows,
        sample_id=to_words(ids["sample_id"]),
        is_anchor=is_anchor[rows],
        embedding=embedding,
    )


def _take(members: Members, places: np.ndarray) -> Members:
    return Members(
        unit_name=members.unit_name,
        row=members.row[places],
        sample_id=members.sample_id[places],
        is_anchor=members.is_anchor[places],
        embedding=members.embedding[places],
    )


def resolve(
    blocks: Sequence[SimilarityEdges], rule: Rule, path: str
) -> Iterator[tuple[str, Duplicates]]:
    """Writes the sizes of all components; yields (unit name, duplicates to drop).

    Runs on one worker, with about 200 bytes for each image that has a near-duplicate.
    """
    edges = components.merge_components(blocks)
    found = components.component_sizes(edges, rule.alarm_size)
    for large in found["giants"][:3]:
        logging.warning(
            "%s: a component of %d images, among them %s: is the bound too low?",
            *(rule.reason, large["size"], large["first"]),
        )
    files.write(path, (json.dumps(found, indent=1) + "\n").encode())
    yield from components.find_duplicates(edges, of_anchors=rule.of_anchors)


def drop(
    rule: Rule, decisions: UnitDecisions, duplicates: Iterable[Duplicates]
) -> UnitDecisions:
    """Drops the duplicates of one unit; the detail names the image that stays."""
    bounds = np.array([resemblance.max_similarity for resemblance in rule.by])
    names = [resemblance.descriptor.name for resemblance in rule.by]
    before = "component of " if rule.of_anchors else ""
    for found in duplicates:
        ids = map(to_hex, found.kept_id)
        details = [
            f"{before}{kept_id} by {names[by]}"
            for kept_id, by in zip(ids, found.by, strict=True)
        ]
        decisions = decisions.drop(
            found.row,
            rule.reason,
            value=found.similarity,
            threshold=bounds[found.by],
            detail=details,
        )
    return decisions
