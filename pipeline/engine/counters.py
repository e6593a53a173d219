"""Counters of the stages, which Beam adds up over all workers."""

import collections
from collections.abc import Mapping

from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.metrics.metric import MetricResults

Counters = Mapping[str, int]


def add_to_counter(stage: str, name: str, n: int = 1) -> None:
    """Adds `n` to a counter of a stage; works only inside of a transform."""
    Metrics.counter(stage, name).inc(n)


def sum_counters(metrics: MetricResults, stage: str) -> Counters:
    """The counters of a stage, over all steps of a job."""
    found = metrics.query(MetricsFilter().with_namespace(stage))
    totals: collections.Counter[str] = collections.Counter()
    for counter in found["counters"]:  # one per step, and steps share names
        # A portable runner gives one of two results; 0 or nothing is None to Beam.
        totals[counter.key.metric.name] += counter.result or 0
    return totals
