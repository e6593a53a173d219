"""The results of an ablation as a table and a plot.

    python -m tools.ablation.table --results DIR [--plot FILE.svg]

In: `ARM-SEED.json` files as `tools.ablation.run` writes them. Out: Markdown on standard
output, and the plot.
"""

import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from recipes import command_line
from tools.ablation import plot
from tools.ablation.arms import ARMS
from tools.ablation.comparison import Difference, Results, compare_all

BYTES = "state_bytes"  # the only measure that is not a share
MEASURES = (
    "zero_shot_color_miou",
    "zero_shot_miou",
    "zero_shot_miou_held_out",
    "linear_miou",
    "image_to_text",
    "text_to_image",
    "knn_accuracy",
    BYTES,
)


def read(folder: pathlib.Path) -> Results:
    """Reads the figures of all results.

    Raises:
      ValueError: if the folder has no result.
    """
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in ARMS}
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ValueError(f"--results {folder}: expected ARM-SEED.json files in it")
    for path in paths:
        result = json.loads(path.read_text())
        found[result["arm"]][result["seed"]] = result["figures"]
    return found


def effects_table(differences: Iterable[Difference]) -> str:
    """A table with one row per effect and measure."""
    rows = [
        (
            f"({one.effect.key}) {one.effect.title}",
            f"`{one.effect.arm}` - `{one.effect.against}`",
            one.measure,
            _format(one.measure, one.mean, "+"),
            f"{_format(one.measure, one.low, '+')} to"
            f" {_format(one.measure, one.high, '+')}",
            str(one.n_seeds),
            str(one.expected),
            one.verdict,
        )
        for one in differences
    ]
    head = ("effect", "arms", "measure", "difference", "95 % interval")
    return _markdown((*head, "seeds", "expected", "verdict"), rows)


def arms_table(results: Results) -> str:
    """A table of means over seeds with their standard deviations, one row per arm."""
    rows = []
    for arm, seeds in results.items():
        if seeds:
            columns = [[one[name] for one in seeds.values()] for name in MEASURES]
            cells = map(_spread, MEASURES, columns)
            rows.append((f"`{arm}`", str(len(seeds)), *cells))
    return _markdown(("arm", "seeds", *MEASURES), rows)


def _format(measure: str, value: float, sign: str = "") -> str:
    """Formats a share as percent, or the bytes of the state as kB."""
    if measure == BYTES:
        return f"{value / 1000:{sign},.0f} kB"
    return f"{100 * value:{sign}.2f}"


def _spread(measure: str, values: Sequence[float]) -> str:
    mean = _format(measure, float(np.mean(values)))
    if measure == BYTES or len(values) < 2:
        return mean
    return f"{mean} ± {_format(measure, float(np.std(values, ddof=1)))}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_line.Parser(
        prog="python -m tools.ablation.table",
        description="Prints the results of an ablation as Markdown, and plots them.",
    )
    parser.add_argument("--results", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE.svg")
    flags = parser.parse_args(arguments)
    with command_line.exits(command_line.WRONG_USAGE, ValueError, OSError):
        results = read(flags.results)
        differences = compare_all(results)
        if flags.plot:
            shares = [one for one in differences if one.measure != BYTES]
            flags.plot.write_text(plot.svg(shares))
    print(f"{effects_table(differences)}\n\n{arms_table(results)}")


if __name__ == "__main__":
    main()
