"""Joins findings about pairs with the decisions on their lot.

In: decisions, and findings that other steps have keyed by the name of the lot. Out:
each lot's decisions with its findings.
"""

from collections.abc import Iterable
from typing import Any

import apache_beam as beam

from pipeline.selection.lot_decisions import LotDecisions


def join_by_lot(
    decisions: beam.PCollection[LotDecisions],
    lot_to_finding: beam.PCollection[tuple[str, Any]],
    name: str,
) -> beam.PCollection[tuple[LotDecisions, list]]:
    """Brings findings about pairs, keyed by name of the lot, to its decisions.

    `name` says what they are, and makes the labels of the steps unique.
    """
    lot_to_decisions = decisions | f"Key by lot, for {name}" >> beam.Map(_with_name)
    grouped = {"decisions": lot_to_decisions, "findings": lot_to_finding}
    return (
        grouped
        | f"Bring {name} to their lot" >> beam.CoGroupByKey()
        | f"Take lots with {name}" >> beam.MapTuple(_take_lot)
    )


def _with_name(decisions: LotDecisions) -> tuple[str, LotDecisions]:
    return decisions.lot.name, decisions


def _take_lot(lot_name: str, grouped: dict[str, Iterable]) -> tuple[LotDecisions, list]:
    (decisions,) = grouped["decisions"]
    return decisions, list(grouped["findings"])
