"""Times and costs that earlier commands recorded in the run folder.

In: RUN/progress.json and RUN/forecast.json, if they exist. Out: rows of text.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.engine import progress
from pipeline.report.cards import format_number
from pipeline.storage import files
from pipeline.storage.json_files import read_json
from recipes.safe_text import visible


def read_times(root: str) -> list[dict[str, str]]:
    """Returns one row per stage that had work to do."""
    stages = progress.read(root).get("stages", {})
    return [_row(stage, record) for stage, record in stages.items()]


def _row(stage: str, record: Mapping[str, Any]) -> dict[str, str]:
    n_rows, elapsed_s = record["n_rows"], record["elapsed_s"]
    counters = record["counters"]
    return {
        "stage": visible(stage),
        "time": format_duration(elapsed_s),
        "n": f"{n_rows:,}",
        "rate": format_number(n_rows / elapsed_s) if elapsed_s else "",
        "counters": ", ".join(f"{visible(name)} {n:,}" for name, n in counters.items()),
    }


def format_duration(seconds: float) -> str:
    """Formats a time as hours and minutes, minutes and seconds, or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def read_costs(root: str) -> list[tuple[str, str]]:
    """Returns the cost of a run by resource, as `forecast` estimated it."""
    forecast = read_json(files.join(root, "forecast.json")) or {}
    money = forecast.get("costs", {}).get("money", {})
    return [
        (visible(name), format_number(cost["estimate"])) for name, cost in money.items()
    ]
