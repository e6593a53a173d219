"""Near-duplicates within the pool.

K-means divides the pool into cells, and the images of a cell are compared with one
another. Similar images make up components, of which one image is kept. Only here do
embeddings cross a shuffle, as they are stored. Nothing that grows with the pool passes
one worker, but what two rounds of merging leave of components. The transforms map
PCollection[LotDecisions] to PCollection[LotDecisions].
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsDict, AsSingleton, TaggedOutput
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

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
from pipeline.selection.duplicates.cell_entries import (
    Comparison,
    EnterCells,
    SampleCells,
    WriteSplits,
    compared_rows,
)
from pipeline.selection.duplicates.component_roots import (
    FindRoots,
    concatenate_pairs,
    lookup,
    partition,
)
from pipeline.selection.duplicates.components import Duplicates
from pipeline.selection.duplicates.members import LINKED, split_by
from pipeline.selection.lot_decisions import LotDecisions, to_hex
from pipeline.selection.lot_join import join_by_lot
from pipeline.selection.search import kmeans
from pipeline.storage import files

_LINKS_PER_BLOCK = 10**6  # of 46 bytes, that a worker collects


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

    `run` must list its lots, which enter the names of the files of centroids.
    """

    def __init__(self, run: RunFolder, rule: Rule) -> None:
        super().__init__()
        self._run = run
        self._rule = rule

    def expand(self, decisions: beam.PCollection[LotDecisions]) -> beam.PCollection:
        rule = self._rule
        names = AsSingleton(
            decisions
            | "Name lots" >> beam.Map(lambda v: v.lot.name)
            | "Collect names" >> beam.combiners.ToList()
            | "Sort names" >> beam.Map(sorted)
        )
        n_pool = AsSingleton(
            decisions
            | "Count compared images" >> beam.Map(count_compared, rule)
            | "Add counts" >> beam.CombineGlobally(sum)
        )
        path = files.join(self._run.decisions.folder, f"{rule.reason}_components.json")
        linked = (
            [
                self._find_links(decisions, number, names, n_pool)
                for number in range(len(rule.by))
            ]
            | "Take links by all" >> beam.Flatten()
            | "Find components" >> FindComponents()
        )
        found = linked | "Find duplicates" >> beam.ParDo(
            FindDuplicates(rule), names
        ).with_outputs("account", main="duplicates")
        _ = (
            found.account
            | "Add accounts" >> beam.CombineGlobally(components.add_sizes)
            | "Write account" >> beam.Map(write_account, rule, path)
        )
        joined = join_by_lot(decisions, found.duplicates, "duplicates")
        return joined | "Drop duplicates" >> beam.MapTuple(
            functools.partial(drop, rule)
        )

    def _find_links(
        self,
        decisions: beam.PCollection[LotDecisions],
        number: int,
        names: AsSingleton,
        n_pool: AsSingleton,
    ) -> beam.PCollection[tuple[int, np.ndarray]]:
        """The images that have a near-duplicate by one descriptor."""
        rule, resemblance = self._rule, self._rule.by[number]
        name = resemblance.descriptor.name
        record = record_path(self._run, resemblance, rule)
        run = self._run.without_lots().comparing(resemblance.descriptor)
        comparison = Comparison(run, rule.cells, resemblance, rule.of_anchors)
        pool = decisions
        if rule.of_anchors:
            pool = decisions | f"Train on all sources by {name}" >> beam.Map(
                make_all_droppable
            )
        path = AsSingleton(
            pool
            | f"Train cells by {name}" >> kmeans.TrainCentroids(run, rule.cells, record)
        )
        splits = AsDict(
            decisions
            | f"Sample cells by {name}"
            >> beam.ParDo(SampleCells(comparison), path, names, n_pool)
            | f"Bring samples together by {name}" >> beam.GroupByKey()
            | f"Split cells by {name}" >> beam.ParDo(WriteSplits(comparison), n_pool)
        )
        return (
            decisions
            | f"Enter cells by {name}"
            >> beam.ParDo(EnterCells(comparison), path, names, splits)
            | f"Bring cells together by {name}" >> beam.GroupByKey()
            | f"Compare in cells by {name}"
            >> beam.ParDo(FindLinks(number, resemblance.max_similarity))
        )


class FindLinks(beam.DoFn):
    """Yields (partition of image, images with a near-duplicate in their part).

    Gets all images of some parts, and collects links of many, as most have few.
    """

    def __init__(self, by: int, max_similarity: float) -> None:
        self._by = by
        self._max_similarity = max_similarity
        self._found: list[np.ndarray] = []

    def process(
        self, keyed: tuple[int, Iterable[np.ndarray]]
    ) -> Iterator[tuple[int, np.ndarray]]:
        members = np.concatenate(list(keyed[1]))
        linked = [
            components.find_links([part], self._by, self._max_similarity)
            for _, part in split_by(members["part"], members)
        ]
        self._found.append(np.concatenate(linked))
        if sum(map(len, self._found)) >= _LINKS_PER_BLOCK:
            yield from self._take()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        yield from map(GlobalWindows.windowed_value, self._take())

    def _take(self) -> Iterator[tuple[int, np.ndarray]]:
        found, self._found = np.concatenate([np.empty(0, LINKED), *self._found]), []
        yield from split_by(partition(found["image"]), found)


class FindComponents(beam.PTransform):
    """Maps images with near-duplicates, by partition, to whole components.

    An image may occur in several blocks; in the result it occurs once, with the first
    image of its component as its root.
    """

    def expand(
        self, linked: beam.PCollection[tuple[int, np.ndarray]]
    ) -> beam.PCollection[np.ndarray]:
        merged = (
            linked
            | "Bring entries together" >> beam.GroupByKey()
            | "Merge entries"
            >> beam.ParDo(MergeEntries()).with_outputs("pairs", main="images")
        )
        grouped = {
            "images": merged.images,
            "roots": merged.pairs | "Find roots" >> FindRoots(),
        }
        return (
            grouped
            | "Bring roots together" >> beam.CoGroupByKey()
            | "Take last roots" >> beam.FlatMapTuple(take_roots)
            | "Bring components together" >> beam.GroupByKey()
            | "Take components" >> beam.MapTuple(concatenate)
        )


class MergeEntries(beam.DoFn):
    """Yields (partition of root, images), and pairs of roots that belong together."""

    def process(
        self, keyed: tuple[int, Iterable[np.ndarray]]
    ) -> Iterator[tuple[int, np.ndarray] | TaggedOutput[Literal["pairs"], np.ndarray]]:
        merged, pairs = components.merge_linked(list(keyed[1]))
        yield from split_by(partition(merged["root"]), merged)
        if len(pairs):
            yield TaggedOutput("pairs", pairs)


def take_roots(
    key: int, grouped: Mapping[str, Iterable[np.ndarray]]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (partition of root, images with the root of their root)."""
    del key
    roots = concatenate_pairs(grouped["roots"])
    for images in grouped["images"]:
        linked = images.copy()
        linked["root"] = lookup(images["root"], roots)
        yield from split_by(partition(linked["root"]), linked)


def concatenate(key: int, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """All blocks of one partition as one."""
    del key
    return np.concatenate(list(blocks))


def count_compared(decisions: LotDecisions, rule: Rule) -> int:
    """The number of images of a lot that are compared with others."""
    return len(compared_rows(decisions, of_anchors=rule.of_anchors)[0])


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
    pool = dataclasses.replace(run, config=config, seed_lots=())
    training = dataclasses.replace(rule.cells, max_per_image=1)
    tables = [
        run.descriptions(source, resemblance.descriptor).folder.removeprefix(run.root)
        for source in run.config.sources
    ]
    parts = (pool.pool_fingerprint, rule.reason, training, tables)
    name = f"{fingerprint('cells', *parts)}.json"
    return files.join(run.root, "clusters", name)


def make_all_droppable(decisions: LotDecisions) -> LotDecisions:
    """The same decisions, with all kept rows droppable."""
    source = dataclasses.replace(decisions.lot.source, keep_all=False)
    lot = dataclasses.replace(decisions.lot, source=source)
    return dataclasses.replace(decisions, lot=lot)


class FindDuplicates(beam.DoFn):
    """Yields (lot name, duplicates to drop), and the sizes of components."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule

    def process(
        self, linked: np.ndarray, names: Sequence[str]
    ) -> Iterator[tuple[str, Duplicates] | TaggedOutput[Literal["account"], dict]]:
        sizes = components.component_sizes(linked, self._rule.alarm_size)
        yield TaggedOutput("account", sizes)
        for lot, found in components.find_duplicates(
            linked, of_anchors=self._rule.of_anchors
        ):
            yield names[lot], found


def write_account(sizes: dict, rule: Rule, path: str) -> None:
    """Writes the sizes of all components, and warns of large ones."""
    for large in sizes["giants"][:3]:
        logging.warning(
            "%s: a component of %d images, among them %s: is the bound too low?",
            *(rule.reason, large["size"], large["first"]),
        )
    account = sizes | {"alarm_size": rule.alarm_size}
    files.write(path, (json.dumps(account, indent=1) + "\n").encode())


def drop(
    rule: Rule, decisions: LotDecisions, duplicates: Iterable[Duplicates]
) -> LotDecisions:
    """Drops the duplicates of one lot; the detail names the image that stays."""
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
