"""The steps of `select`, in their order: one decision on every pair.

In: the tables that `score` wrote. Out: a table of decisions for every lot, and the
ledger. No model runs, and no image crosses a shuffle. Embeddings cross one only where
the images of the pool are compared with one another.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import TaggedOutput

from pipeline.config.selection import (
    DropRule,
    KeepFraction,
    SelectionConfig,
    needs_seeds,
)
from pipeline.engine.counters import add_to_counter
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection import (
    alignment,
    balance,
    checks,
    language,
    ledger,
    reference_accounts,
    rights,
    rules,
    safety,
)
from pipeline.selection.duplicates import evaluation, exact, pool
from pipeline.selection.duplicates.cell_entries import delete_splits
from pipeline.selection.duplicates.evaluation import EvaluationBound
from pipeline.selection.ledger import SourceCounts
from pipeline.selection.lot_decisions import (
    OUTCOMES,
    LotDecisions,
    open_lot,
)
from pipeline.selection.retrieval import keep_curated
from pipeline.selection.search import index_builder
from pipeline.selection.search.reference_sets import IndexFiles
from pipeline.sources.shards import Lot
from pipeline.storage.json_files import read_json
from pipeline.storage.tables import LotTables

STAGE = "select"


class Select(beam.PTransform):
    """Maps PCollection[Lot] to the ledger, one dictionary.

    Writes `run.decisions` and `RUN/ledger.json`; a sample of a run does not touch the
    latter. Lots that have decisions are counted from their tables, not searched again.

    Raises:
      ValueError: when applied, on contradictory settings, and on an evaluation or seed
        set that is empty, has embeddings of another width, or has more unreadable
        images than the recipe allows.
    """

    def __init__(self, run: RunFolder, *, is_sample: bool = False) -> None:
        super().__init__()
        self._run = run
        self._is_sample = is_sample

    def expand(self, lots: beam.PCollection[Lot]) -> beam.PCollection[dict]:
        checks.check_settings(self._run)
        keep_curated.check_pool(self._run)
        safety.check(self._run)
        selection = self._run.config.selection
        tables = self._run.decisions
        sets = reference_accounts.make_accounts(self._run)
        bounds, seeds = build_indexes(self._run)
        run, run_pool = self._run.without_lots(), self._run.pool_fingerprint
        filtered = (
            lots
            | "Read pairs" >> beam.Map(open_lot, run)
            | "Drop forbidden pairs"
            >> rights.DropForbidden(run, selection.opt_out_directives)
            | "Apply rules" >> ApplyRules(run, selection.drop_rules)
            | "Keep languages" >> language.FilterLanguage(run, selection.language)
            | "Keep aligned"
            >> alignment.FilterAlignment(run, selection.alignment, tables.folder)
            | "Drop exact duplicates"
            >> exact.DropExactDuplicates(run, selection.drop_exact_duplicates)
        )
        compare = CompareEmbeddings(self._run, bounds, seeds)
        pool = run_pool if depends_on_pool(selection) else ""
        skip = beam.ParDo(SkipFinished(tables, pool)).with_outputs(
            "finished", main="rest"
        )
        if is_global(selection):  # finished lots take part as well
            compared = filtered | "Compare embeddings" >> compare
            rest, finished = compared | "Skip finished lots" >> skip
        else:
            rest, finished = filtered | "Skip finished lots" >> skip
            rest = rest | "Compare embeddings" >> compare
        write = beam.ParDo(WriteDecisions(run, tables, pool))
        decided = rest | "Write decisions" >> write
        read = lots | "Count pairs" >> beam.Map(ledger.count_pairs, run)
        counts = (read, finished, decided) | "Flatten counts" >> beam.Flatten()
        root = () if self._is_sample else (self._run.root,)
        return counts | "Add up" >> WriteLedger(sets, run_pool, *root, tables.folder)


class ApplyRules(beam.PTransform):
    """Drops the pairs that some rule drops, for the reason of the first one."""

    def __init__(self, run: RunFolder, drop_rules: tuple[DropRule, ...]) -> None:
        super().__init__()
        self._run = run
        self._rules = drop_rules

    def expand(self, decisions: beam.PCollection[LotDecisions]) -> beam.PCollection:
        if not self._rules:
            return decisions
        return decisions | "Try rules" >> beam.Map(
            rules.apply_rules, self._run, self._rules
        )


class WriteLedger(beam.PTransform):
    """Adds up the counts, checks them, and writes the ledger into `folders`.

    `sets` is the part of the ledger on evaluation and seed sets; `pool` identifies the
    pool.
    """

    def __init__(self, sets: Mapping[str, Any], pool: str, *folders: str) -> None:
        super().__init__()
        self._sets = sets
        self._pool = pool
        self._folders = folders

    def expand(self, counts: beam.PCollection[SourceCounts]) -> beam.PCollection[dict]:
        return (
            counts
            | "Sum by source" >> beam.CombinePerKey(sum)
            | "Collect sources" >> beam.combiners.ToDict()
            | "Make ledger" >> beam.Map(ledger.make_ledger)
            | "Add sets" >> beam.Map(lambda made, sets: made | sets, self._sets)
            | "Write ledger" >> beam.Map(ledger.write_ledger, self._folders, self._pool)
        )


class CompareEmbeddings(beam.PTransform):
    """The steps that compare embeddings.

    Maps PCollection[LotDecisions] to PCollection[LotDecisions].
    """

    def __init__(
        self,
        run: RunFolder,
        evaluation: tuple[EvaluationBound, ...],
        seeds: tuple[IndexFiles, ...],
    ) -> None:
        super().__init__()
        self._run = run
        self._evaluation = evaluation
        self._seeds = seeds

    def expand(self, decisions: beam.PCollection[LotDecisions]) -> beam.PCollection:
        selection = self._run.config.selection
        run = self._run.without_lots()
        left = (
            decisions
            | "Drop unsafe images" >> safety.DropUnsafe(run, selection.safety)
            | "Drop near evaluation images"
            >> evaluation.DropNearEvaluation(run, self._evaluation)
        )
        for rule in pool.component_rules(selection):
            label = f"Drop components: {rule.reason}"
            left = left | label >> pool.DropLinked(self._run, rule)
        return (
            left
            | "Keep curated"
            >> keep_curated.KeepCurated(self._run, self._seeds, selection.retrieval)
            | "Balance" >> balance.Balance(self._run, self._seeds, selection.balance)
        )


def clean_up(run: RunFolder) -> None:
    """Deletes what a job that is over has left for none but itself."""
    if pool.component_rules(run.config.selection):
        delete_splits(run.root)


def is_global(selection: SelectionConfig) -> bool:
    """Whether the decisions on a lot depend on the other lots."""
    steps = (pool.component_rules(selection), selection.balance)
    return any(steps) or keep_curated.is_global(selection.retrieval)


def depends_on_pool(selection: SelectionConfig) -> bool:
    """Whether a pool that grows may change the decisions on pairs it had before."""
    is_share = isinstance(selection.alignment, KeepFraction)
    return is_share or selection.drop_exact_duplicates or is_global(selection)


def build_indexes(
    run: RunFolder,
) -> tuple[tuple[EvaluationBound, ...], tuple[IndexFiles, ...]]:
    """Builds the indexes of the evaluation sets and of the seed sets that steps use."""
    selection = run.config.selection
    evaluation = tuple(
        (bound, _evaluation_index(run.comparing(bound.descriptor)))
        for bound in selection.evaluation_bounds
    )
    seeds: tuple[IndexFiles, ...] = ()
    if selection.retrieval is not None or needs_seeds(selection.balance):
        # Other modes take all seeds one by one and search the pool.
        is_searched = not keep_curated.is_global(selection.retrieval)
        seeds = index_builder.build(
            "seed_sets",
            run,
            run.seed_lots,
            max_exact=selection.max_exact_set if is_searched else None,
        )
    return evaluation, seeds


def _evaluation_index(run: RunFolder) -> tuple[IndexFiles, ...]:
    max_exact = run.config.selection.max_exact_set
    lots = run.evaluation_lots
    return index_builder.build("evaluation_sets", run, lots, max_exact=max_exact)


class SkipFinished(beam.DoFn):
    """Yields the decisions that are still to write, and the counts of finished lots.

    Looks for each table only once: a second look could find a table that a failed
    attempt of the same run has written. Where decisions depend on the whole pool, those
    on another pool are made again.
    """

    def __init__(self, tables: LotTables, pool: str) -> None:
        self._tables = tables
        self._pool = pool

    def process(
        self, decisions: LotDecisions
    ) -> Iterator[LotDecisions | TaggedOutput[Literal["finished"], SourceCounts]]:
        lot = decisions.lot
        summary = read_json(self._tables.summary_path(lot.name))
        if summary is None or summary.get("pool") != self._pool:
            yield decisions
            return
        add_to_counter(STAGE, "lots_skipped")
        counts = np.array([summary["outcomes"][str(name)] for name in OUTCOMES])
        yield TaggedOutput("finished", ledger.count_lot(lot, outcomes=counts))


class WriteDecisions(beam.DoFn):
    """Writes the decisions of a lot and yields their counts."""

    def __init__(self, run: RunFolder, tables: LotTables, pool: str) -> None:
        self._run = run
        self._tables = tables
        self._pool = pool

    def process(self, decisions: LotDecisions) -> Iterator[SourceCounts]:
        lot = decisions.lot
        pairs = self._run.pairs(lot.source).read(lot.name, columns=["sample_id"])
        counts = decisions.counts()
        facts = {
            "pool": self._pool,
            "outcomes": dict(zip(map(str, OUTCOMES), counts.tolist(), strict=True)),
        }
        self._tables.replace(lot.name, decisions.to_table(pairs["sample_id"]), facts)
        for outcome, n in zip(OUTCOMES, counts.tolist(), strict=True):
            is_reason = isinstance(outcome, DropReason)
            name = f"dropped_{outcome}" if is_reason else outcome
            add_to_counter(STAGE, name, n)
        yield ledger.count_lot(lot, outcomes=counts)
