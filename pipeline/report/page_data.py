"""The data of the page: the pairs it shows, and the selection steps over a sample.

In: a run whose pairs are decided, its ledger, and optionally another run to compare
with. Out: `PageData`. Memory depends on the numbers below, not on the size of the run.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import records
from pipeline.engine.run_folder import RunFolder
from pipeline.report import charts, threshold_margins
from pipeline.report.decision_scan import Scan, scan_decisions
from pipeline.report.lot_parts import N_EXAMPLES as N_EXAMPLES
from pipeline.report.lot_parts import Bounds
from pipeline.report.measures import Measure, compute_measures
from pipeline.report.pair_facts import PairFacts, References, read_pairs
from pipeline.report.run_comparison import Changes, OtherRun, compare
from pipeline.report.sampling import PairLocation
from pipeline.report.select_steps import Step, make_steps

N_SAMPLE = 10_000  # a 95 % interval of a share is then within 1 %

_MIN_SAMPLE = 1000
_MAX_PRODUCTS = 2e11  # of the sample with references: seconds on one core
_N_NEAREST = 16  # pairs on either side of each threshold


@dataclasses.dataclass(frozen=True)
class PageData:
    """Everything that the page is made from."""

    run: RunFolder
    counts: Mapping[str, int]  # of the ledger, by outcome
    ledger: Mapping[str, Any]
    scan: Scan
    location_to_facts: Mapping[PairLocation, PairFacts]
    sample: Sequence[PairFacts]
    measures: Mapping[str, Measure]
    steps: Sequence[Step]
    changes: Changes | None

    def examples(self, outcome: str) -> list[PairFacts]:
        """Facts of random pairs with an outcome."""
        locations = self.scan.outcome_to_examples[outcome]
        return [self.location_to_facts[location] for location in locations]

    @property
    def n_read(self) -> int:
        """Pairs of all outcomes."""
        return sum(self.counts.values())


def read_page_data(
    run: RunFolder, ledger: Mapping[str, Any], other: OtherRun | None = None
) -> PageData:
    """Reads the data of the page from the tables of a run."""
    references = References.open(run)
    counts = charts.count_by_outcome(ledger)
    bounds = choose_bounds(counts, references)
    found, location_to_facts = scan_decisions(run, bounds, references)
    changes = None if other is None else compare(run, other, N_EXAMPLES)
    if changes is not None:
        location_to_facts |= read_pairs(run, changed_locations(changes), references)
    sample = [location_to_facts[location] for location in found.sample]
    name_to_measure = compute_measures(sample)
    return PageData(
        run=run,
        counts=counts,
        ledger=ledger,
        scan=found,
        location_to_facts=location_to_facts,
        sample=sample,
        measures=name_to_measure,
        steps=make_steps(run.config.selection, sample, name_to_measure),
        changes=changes,
    )


def choose_bounds(counts: Mapping[str, int], references: References) -> Bounds:
    """Which pairs the page needs of each lot; `counts` are those of the ledger."""
    n_sample = N_SAMPLE
    if references.n_products:
        affordable = int(_MAX_PRODUCTS / references.n_products)
        n_sample = min(N_SAMPLE, max(_MIN_SAMPLE, affordable))
    return Bounds.of(counts, n_sample)


def changed_locations(changes: Changes) -> list[PairLocation]:
    """Locations of the examples of changes."""
    return [
        one.location for some in changes.change_to_examples.values() for one in some
    ]


def pairs_on_page(data: PageData) -> list[PairFacts]:
    """The pairs that the page shows before a threshold is moved."""
    found = [one for outcome in data.counts for one in data.examples(outcome)]
    for step in data.steps:
        rows = threshold_margins.find_barely_kept(step, data.sample, N_EXAMPLES)
        found += [data.sample[i] for i in rows]
    if data.changes is not None:
        locations = changed_locations(data.changes)
        found += [data.location_to_facts[location] for location in locations]
    return found + pairs_near_seeds(data)


def nearest_to_thresholds(data: PageData) -> list[PairFacts]:
    """The pairs whose outcome changes first when a threshold moves."""
    sides = itertools.product(data.steps, (True, False))
    return [
        data.sample[i]
        for step, is_kept in sides
        for i in threshold_margins.find_nearest(
            step, data.sample, records.KEPT if is_kept else step.reason, _N_NEAREST
        )
    ]


def pairs_near_seeds(data: PageData) -> list[PairFacts]:
    """Kept pairs of the sample that have a nearest seed image."""
    kept = (one for one in data.sample if one.decision.outcome == records.KEPT)
    near = (one for one in kept if one.seed and not one.lot.source.keep_all)
    return list(itertools.islice(near, N_EXAMPLES))
