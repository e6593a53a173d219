"""Joins findings about pairs with the decisions on their unit.

In: decisions, and findings that other steps have keyed by the name of the unit. Out:
each unit's decisions with its findings.
"""

from collections.abc import Iterable
from typing import Any

import apache_beam as beam

from pipeline.selection.unit_decisions import UnitDecisions


def join_by_unit(
    decisions: beam.PCollection[UnitDecisions],
    unit_to_finding: beam.PCollection[tuple[str, Any]],
    name: str,
) -> beam.PCollection[tuple[UnitDecisions, list]]:
    """Brings findings about pairs, keyed by name of the unit, to its decisions.

    `name` says what they are, and makes the labels of the steps unique.
    """
    unit_to_decisions = decisions | f"Key by unit, for {name}" >> beam.Map(_with_name)
    grouped = {"decisions": unit_to_decisions, "findings": unit_to_finding}
    return (
        grouped
        | f"Bring {name} to their unit" >> beam.CoGroupByKey()
        | f"Take units with {name}" >> beam.MapTuple(_take_unit)
    )


def _with_name(decisions: UnitDecisions) -> tuple[str, UnitDecisions]:
    return decisions.unit.name, decisions


def _take_unit(
    unit_name: str, grouped: dict[str, Iterable]
) -> tuple[UnitDecisions, list]:
    (decisions,) = grouped["decisions"]
    return decisions, list(grouped["findings"])
