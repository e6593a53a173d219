"""Counters of the stages, which Beam adds up over all workers."""

from apache_beam.metrics import Metrics


def add_to_counter(stage: str, name: str, n: int = 1) -> None:
    """Adds `n` to a counter of a stage; works only inside of a transform."""
    Metrics.counter(stage, name).inc(n)
