"""2 select: one decision on every pair, from its scores and the configuration.

In: the tables that `score` wrote. Out: a table of decisions for every unit, and the
ledger. No model runs and no image crosses a shuffle; embeddings do only to compare the
images of the pool with one another.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput

from pipeline import records
from pipeline.config.selection import SelectionConfig
from pipeline.engine.run_folder import LEDGER_NAME, RunFolder
from pipeline.models import descriptors
from pipeline.records import DropReason
from pipeline.selection import (
    alignment,
    balance,
    reference_accounts,
    rights,
    rules,
    safety,
)
from pipeline.selection.duplicates import exact, pool
from pipeline.selection.duplicates.exact import EvaluationBound
from pipeline.selection.retrieval import keep_curated
from pipeline.selection.search import reference_sets
from pipeline.selection.search.reference_sets import SetFiles
from pipeline.selection.unit_decisions import (
    OUTCOMES,
    Verdicts,
    open_verdicts,
    outcome_counts,
)
from pipeline.sources.shards import Unit
from pipeline.storage import files
from pipeline.storage.tables import UnitTables

STAGE = "select"

# Source name to [read, *one count per OUTCOMES].
Counts = tuple[str, np.ndarray]


class Select(beam.PTransform):
    """Maps PCollection[Unit] to the ledger, one dictionary.

    Writes `run.decisions` and `RUN/ledger.json`, which a sample of a run leaves alone.
    Units that have decisions are counted from their tables and not searched again.

    Raises:
      ValueError: when applied, on settings that contradict each other and on an
        evaluation or seed set that is empty, embedded in another width, or of which
        more cannot be compared than the recipe allows.
    """

    def __init__(self, run: RunFolder, *, is_sample: bool = False) -> None:
        super().__init__()
        self._run = run
        self._is_sample = is_sample

    def expand(self, units: beam.PCollection[Unit]) -> beam.PCollection[dict]:
        check(self._run)
        keep_curated.check_pool(self._run)
        safety.check(self._run)
        selection = self._run.config.selection
        decisions = self._run.decisions
        sets = reference_accounts.account(self._run)
        evaluation, seeds = build_indexes(self._run)
        run = self._run.without_units()
        filtered = (
            units
            | "Read pairs" >> beam.Map(open_verdicts, run)
            | "Drop what must not be used"
            >> rights.DropForbidden(run, selection.opt_out_directives)
            | "Apply rules" >> rules.ApplyRules(run, selection.drop_rules)
            | "Keep languages" >> rules.FilterLanguage(run, selection.language)
            | "Keep aligned"
            >> alignment.FilterAlignment(run, selection.alignment, decisions.folder)
            | "Drop exact duplicates"
            >> exact.DropExactDuplicates(run, selection.drop_exact_duplicates)
        )
        compare = CompareEmbeddings(self._run, evaluation, seeds)
        skip = beam.ParDo(SkipFinished(decisions)).with_outputs("finished", main="rest")
        if is_global(selection):  # finished units take part as well
            compared = filtered | "Compare embeddings" >> compare
            rest, finished = compared | "Skip finished units" >> skip
        else:
            rest, finished = filtered | "Skip finished units" >> skip
            rest = rest | "Compare embeddings" >> compare
        decided = rest | "Write decisions" >> beam.ParDo(WriteDecisions(run, decisions))
        read = units | "Count pairs" >> beam.Map(count_pairs, run)
        counts = (read, finished, decided) | "Put counts together" >> beam.Flatten()
        root = () if self._is_sample else (self._run.root,)
        return counts | "Add up" >> WriteLedger(sets, *root, decisions.folder)


class CompareEmbeddings(beam.PTransform):
    """The steps that compare embeddings.

    Maps PCollection[Verdicts] to PCollection[Verdicts].
    """

    def __init__(
        self,
        run: RunFolder,
        evaluation: tuple[EvaluationBound, ...],
        seeds: tuple[SetFiles, ...],
    ) -> None:
        super().__init__()
        self._run = run
        self._evaluation = evaluation
        self._seeds = seeds

    def expand(self, verdicts: beam.PCollection[Verdicts]) -> beam.PCollection:
        selection = self._run.config.selection
        run = self._run.without_units()
        left = (
            verdicts
            | "Drop unsafe images" >> safety.DropUnsafe(run, selection.safety)
            | "Drop near evaluation images"
            >> exact.DropNearEvaluation(run, self._evaluation)
        )
        for rule in pool.rules_of(selection):
            label = f"Drop components: {rule.reason}"
            left = left | label >> pool.DropLinked(self._run, rule)
        return (
            left
            | "Keep curated"
            >> keep_curated.KeepCurated(self._run, self._seeds, selection.retrieval)
            | "Balance" >> balance.Balance(self._run, self._seeds, selection.balance)
        )


def is_global(selection: SelectionConfig) -> bool:
    """Whether what is kept of a unit hangs on the other units."""
    steps = (pool.rules_of(selection), selection.balance)
    return any(steps) or keep_curated.is_global(selection.retrieval)


def check(run: RunFolder) -> None:
    """Raises ValueError on settings that cannot be meant."""
    selection = run.config.selection
    if selection.evaluation_bounds and not run.evaluation_units:
        is_short = selection.max_evaluation_similarity is not None
        name = "max_evaluation_similarity" if is_short else "evaluation_duplicates"
        raise ValueError(
            f"{name}={getattr(selection, name)}:"
            " expected evaluation sets to compare with, or none"
        )
    for descriptor in selection.descriptors:
        descriptors.check(descriptor)
    keep_curated.check(run)
    balance.check(run)
    names = set()
    for unit in run.units:
        if unit.name in names:
            raise ValueError(
                f"{unit.source.name}={unit.uri}: expected a shard of one source only"
            )
        names.add(unit.name)


def build_indexes(
    run: RunFolder,
) -> tuple[tuple[EvaluationBound, ...], tuple[SetFiles, ...]]:
    """The indexes of the evaluation sets and of the seed sets that are needed."""
    selection = run.config.selection
    evaluation = tuple(
        (bound, _evaluation_index(run.comparing(bound.descriptor)))
        for bound in selection.evaluation_bounds
    )
    seeds: tuple[SetFiles, ...] = ()
    if selection.retrieval is not None or balance.needs_seeds(selection.balance):
        # Other modes take all seeds one by one and search the pool.
        is_searched = not keep_curated.is_global(selection.retrieval)
        seeds = reference_sets.build(
            "seed_sets",
            run,
            run.seed_units,
            max_exact=selection.max_exact_set if is_searched else None,
        )
    return evaluation, seeds


def _evaluation_index(run: RunFolder) -> tuple[SetFiles, ...]:
    max_exact = run.config.selection.max_exact_set
    units = run.evaluation_units
    return reference_sets.build("evaluation_sets", run, units, max_exact=max_exact)


class SkipFinished(beam.DoFn):
    """Yields verdicts that are still to write, and the counts of finished units.

    Tags each unit once: another look later could see a table that a failed attempt of
    this very run has written.
    """

    def __init__(self, decisions: UnitTables) -> None:
        self._decisions = decisions
        self._skipped = Metrics.counter(STAGE, "units_skipped")

    def process(
        self, verdicts: Verdicts
    ) -> Iterator[Verdicts | TaggedOutput[Literal["finished"], Counts]]:
        unit = verdicts.unit
        if files.is_file(self._decisions.path(unit.name)):
            self._skipped.inc()
            table = self._decisions.read(unit.name, columns=["outcome"])
            yield TaggedOutput(
                "finished", _counts(unit, outcomes=outcome_counts(table))
            )
        else:
            yield verdicts


class WriteDecisions(beam.DoFn):
    """Writes the decisions of a unit and yields their counts."""

    def __init__(self, run: RunFolder, decisions: UnitTables) -> None:
        self._run = run
        self._decisions = decisions

    def process(self, verdicts: Verdicts) -> Iterator[Counts]:
        unit = verdicts.unit
        pairs = self._run.pairs(unit.source).read(unit.name, columns=["sample_id"])
        self._decisions.write(unit.name, verdicts.to_table(pairs["sample_id"]))
        counts = verdicts.counts()
        for outcome, n in zip(OUTCOMES, counts.tolist(), strict=True):
            is_reason = isinstance(outcome, DropReason)
            name = f"dropped_{outcome}" if is_reason else outcome
            Metrics.counter(STAGE, name).inc(n)
        yield _counts(unit, outcomes=counts)


def count_pairs(unit: Unit, run: RunFolder) -> Counts:
    """Counts the pairs of a unit, from another place than the decisions come from."""
    with files.open_for_reading(run.pairs(unit.source).path(unit.name)) as file:
        return _counts(unit, n_read=pq.read_metadata(file).num_rows)


def _counts(
    unit: Unit, *, n_read: int = 0, outcomes: np.ndarray | None = None
) -> Counts:
    outcomes = np.zeros(len(OUTCOMES), np.int64) if outcomes is None else outcomes
    return unit.source.name, np.array([n_read, *outcomes])


class WriteLedger(beam.PTransform):
    """Adds up the counts, checks them and writes the ledger.

    `sets` are what it says of evaluation and seed sets.
    """

    def __init__(self, sets: Mapping[str, Any], *folders: str) -> None:
        super().__init__()
        self._sets = sets
        self._folders = folders

    def expand(self, counts: beam.PCollection[Counts]) -> beam.PCollection[dict]:
        return (
            counts
            | "Sum by source" >> beam.CombinePerKey(sum)
            | "Collect sources" >> beam.combiners.ToDict()
            | "Make ledger" >> beam.Map(make_ledger)
            | "Add sets" >> beam.Map(lambda ledger, sets: ledger | sets, self._sets)
            | "Write ledger" >> beam.Map(write_ledger, self._folders)
        )


def make_ledger(source_to_counts: dict[str, np.ndarray]) -> dict:
    """What became of the pairs: of all together, and under "sources" of each source.

    Raises:
      ValueError: if pairs that were read have no decision or more than one.
    """
    total = sum(source_to_counts.values(), start=np.zeros(1 + len(OUTCOMES), np.int64))
    sources = {
        name: _ledger_of(name, counts)
        for name, counts in sorted(source_to_counts.items())
    }
    return _ledger_of("all sources", total) | {"sources": sources}


def _ledger_of(name: str, counts: np.ndarray) -> dict:
    n_read, *outcomes = counts.tolist()
    if n_read != sum(outcomes):
        raise ValueError(f"{name}: {n_read} pairs read, {sum(outcomes)} decided")
    outcome_to_count = dict(zip(map(str, OUTCOMES), outcomes, strict=True))
    return {
        "read": n_read,
        "kept": outcome_to_count.pop(records.KEPT),
        "unreadable": outcome_to_count.pop(records.UNREADABLE),
        "dropped": outcome_to_count,
    }


def write_ledger(ledger: dict, folders: tuple[str, ...]) -> dict:
    """Writes the ledger into the folders, of the run and of its decisions."""
    ledger = {**ledger, "version": records.VERSION}
    data = (json.dumps(ledger, indent=2) + "\n").encode()
    for folder in folders:
        files.write(_ledger_path(folder), data)
    return ledger


def is_complete(run: RunFolder) -> bool:
    """Whether all decisions of this configuration and their ledger are there."""
    decisions = run.decisions
    names = {unit.name for unit in run.units}
    has_ledger = files.is_file(_ledger_path(decisions.folder))
    return has_ledger and names <= decisions.unit_names()


def restore_ledger(run: RunFolder) -> dict:
    """Makes the ledger of complete decisions that of the run again; returns it.

    Another configuration may have left its own ledger there in between.
    """
    data = files.read(_ledger_path(run.decisions.folder))
    files.write(_ledger_path(run.root), data)
    return json.loads(data)


def _ledger_path(folder: str) -> str:
    return files.join(folder, LEDGER_NAME)
