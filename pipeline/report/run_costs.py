"""Times and costs that earlier commands have recorded in the run folder.

In: RUN/progress.json and RUN/forecast.json, if they are there. Out: rows of text.
"""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.engine import progress
from pipeline.report.cards import number
from pipeline.storage import files
from recipes.safe_text import visible


def times(root: str) -> list[dict[str, str]]:
    """One row a stage that had work to do."""
    stages = progress.read(root).get("stages", {})
    return [_row(stage, record) for stage, record in stages.items()]


def _row(stage: str, record: Mapping[str, Any]) -> dict[str, str]:
    n_rows, elapsed_s = record["n_rows"], record["elapsed_s"]
    counters = record["counters"]
    return {
        "stage": visible(stage),
        "time": duration(elapsed_s),
        "n": f"{n_rows:,}",
        "rate": number(n_rows / elapsed_s) if elapsed_s else "",
        "counters": ", ".join(f"{visible(name)} {n:,}" for name, n in counters.items()),
    }


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def costs(root: str) -> list[tuple[str, str]]:
    """What a forecast said of the money that a run takes, by what is paid for."""
    path = files.join(root, "forecast.json")
    if not files.is_file(path):
        return []
    money = json.loads(files.read(path)).get("costs", {}).get("money", {})
    return [(visible(name), number(found["estimate"])) for name, found in money.items()]
