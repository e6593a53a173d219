"""What the page is made of: the pairs it shows, and the steps over a sample.

In: a run whose pairs are decided on, its ledger, and another run to compare with. Out:
`Looked`. Memory hangs on the numbers below, not on the size of the run.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import records
from pipeline.engine.run_folder import RunFolder
from pipeline.report import charts, threshold_margins
from pipeline.report.decision_scan import Scan, scan
from pipeline.report.measures import Measure, measures_of
from pipeline.report.pair_facts import Examined, References, examine
from pipeline.report.run_comparison import Changes, OtherRun, compare
from pipeline.report.sampling import Place
from pipeline.report.select_steps import Step, steps_of

N_SAMPLE = 10_000  # an interval of a share is then at most 1 % wide to either side
N_EXAMPLES = 12  # of each outcome and change

_MIN_SAMPLE = 1000
_MAX_PRODUCTS = 2e11  # of comparing the sample with references: seconds of one core
_N_NEAREST = 16  # pairs on either side of each threshold


@dataclasses.dataclass(frozen=True)
class Looked:
    """All that the page is made of."""

    run: RunFolder
    counts: Mapping[str, int]  # of the ledger, by outcome
    ledger: Mapping[str, Any]
    scan: Scan
    examined: Mapping[Place, Examined]
    sample: Sequence[Examined]
    measures: Mapping[str, Measure]
    steps: Sequence[Step]
    changes: Changes | None

    def examples(self, outcome: str) -> list[Examined]:
        return [self.examined[p] for p in self.scan.outcome_to_examples[outcome]]

    @property
    def n_read(self) -> int:
        return sum(self.counts.values())


def look(
    run: RunFolder, ledger: Mapping[str, Any], other: OtherRun | None = None
) -> Looked:
    """Reads what the page shows."""
    references = References.open(run)
    n_sample = N_SAMPLE
    if references.n_products:
        affordable = int(_MAX_PRODUCTS / references.n_products)
        n_sample = min(N_SAMPLE, max(_MIN_SAMPLE, affordable))
    found = scan(run, N_EXAMPLES, n_sample)
    changes = None if other is None else compare(run, other, N_EXAMPLES)
    changed = [] if changes is None else places_of(changes)
    examples = itertools.chain(*found.outcome_to_examples.values())
    examined = examine(run, [*found.sample, *examples, *changed], references)
    sample = [examined[place] for place in found.sample]
    name_to_measure = measures_of(sample)
    return Looked(
        run=run,
        counts=charts.by_outcome(ledger),
        ledger=ledger,
        scan=found,
        examined=examined,
        sample=sample,
        measures=name_to_measure,
        steps=steps_of(run.config.selection, sample, name_to_measure),
        changes=changes,
    )


def places_of(changes: Changes) -> list[Place]:
    return [one.place for some in changes.change_to_examples.values() for one in some]


def shown(looked: Looked) -> list[Examined]:
    """The pairs that stand on the page before anything is moved."""
    found = [one for outcome in looked.counts for one in looked.examples(outcome)]
    for step in looked.steps:
        rows = threshold_margins.barely_kept(step, looked.sample, N_EXAMPLES)
        found += [looked.sample[i] for i in rows]
    if looked.changes is not None:
        found += [looked.examined[place] for place in places_of(looked.changes)]
    return found + near_seeds(looked)


def nearest_to_thresholds(looked: Looked) -> list[Examined]:
    """The pairs that a moved threshold changes first."""
    sides = itertools.product(looked.steps, (True, False))
    return [
        looked.sample[i]
        for step, is_kept in sides
        for i in threshold_margins.nearest(
            step, looked.sample, records.KEPT if is_kept else step.reason, _N_NEAREST
        )
    ]


def near_seeds(looked: Looked) -> list[Examined]:
    """Kept pairs of the sample, which know their seed."""
    kept = (one for one in looked.sample if one.decision.outcome == records.KEPT)
    near = (one for one in kept if one.seed and not one.unit.source.keep_all)
    return list(itertools.islice(near, N_EXAMPLES))
