"""Draws the README's first picture: dropped pairs with their reasons, and kept ones.

    python -m tools.picture --run RUN --output docs/images/demo.svg

RUN is a captioned run of the demo's recipe, such as that of `make demo`. The images are
embedded, so the picture is one file. Pairs are those with the smallest ids.
"""

import argparse
import base64
import html
import io
import pathlib
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence

from PIL import Image

from pipeline.engine.run_folder import RunFolder
from pipeline.records import KEPT, DropReason
from pipeline.report.caption_facts import read_captions
from pipeline.report.pair_facts import PairFacts, read_pairs
from pipeline.report.sampling import PairLocation
from pipeline.report.show_pair import read_image_at
from pipeline.run import open_run

REASONS = (
    DropReason.BOILERPLATE_ALT_TEXT,
    DropReason.LANGUAGE,
    DropReason.LOW_ALIGNMENT,
    DropReason.EXACT_DUPLICATE,
    DropReason.NEAR_EVALUATION,
    DropReason.FAR_FROM_SEEDS,
)
N_KEPT = 3
_WIDTH, _SIDE, _LINE = 900, 120, 15  # pixels; of an image, of a line of text
_CSS = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-size: 15px; font-weight: 600 }
.bad { fill: #b42318; font-weight: 600 }
.good { fill: #1a7f37; font-weight: 600 }
@media (prefers-color-scheme: dark) {
  text { fill: #d0d7de }
  .bad { fill: #ff8d80 }
  .good { fill: #56d364 }
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for flag in ("--run", "--output"):
        parser.add_argument(flag, type=pathlib.Path, required=True)
    flags = parser.parse_args()
    run = open_run(["status", "--output", str(flags.run)])
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    flags.output.write_text(svg(run))


def svg(run: RunFolder) -> str:
    """Returns the picture of a captioned run."""
    outcome_to_pairs = _first_pairs(run)
    dropped = [one for reason in REASONS for one in outcome_to_pairs[reason][:1]]
    kept = outcome_to_pairs[KEPT][:N_KEPT]
    top, middle = 24, 40 + _SIDE + 6 * _LINE
    parts = [
        _text(0, top - 8, "Dropped", "title"),
        *_dropped(run, dropped, top),
        _text(0, middle + 20, "Kept, with captions at three granularities", "title"),
        *_kept(run, kept, middle + 30),
    ]
    height = middle + 40 + _SIDE + 5 * _LINE
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{_CSS}</style>'
    return "\n".join([head, *parts, "</svg>\n"])


def _first_pairs(run: RunFolder) -> dict[str, list[PairFacts]]:
    """Maps an outcome to its pairs, ordered by id."""
    places = [
        PairLocation(index, row)
        for index, lot in enumerate(run.lots)
        for row in range(run.decisions.read(lot.name, ["outcome"]).num_rows)
    ]
    found: dict[str, list[PairFacts]] = {o: [] for o in (*REASONS, KEPT)}
    for one in sorted(read_pairs(run, places).values(), key=lambda x: x.pair.sample_id):
        found.setdefault(one.decision.outcome, []).append(one)
    return found


def _dropped(run: RunFolder, pairs: Sequence[PairFacts], top: int) -> Iterator[str]:
    for column, one in enumerate(pairs):
        left = column * (_WIDTH // len(REASONS))
        yield _image(run, one, left, top)
        below = top + _SIDE + _LINE
        yield _text(left, below, one.decision.outcome.replace("_", " "), "bad")
        yield from _wrapped(left, below + _LINE, one.pair.alt_text, 20, n_lines=5)


def _kept(run: RunFolder, pairs: Sequence[PairFacts], top: int) -> Iterator[str]:
    key_to_said = read_captions(run, pairs)
    for column, one in enumerate(pairs):
        left = column * (_WIDTH // N_KEPT)
        yield _image(run, one, left, top)
        below = top + _SIDE + 3 * _LINE
        yield from _wrapped(left, below, f"alt text: {one.pair.alt_text}", 46, 3)
        y = top + 10
        for said in key_to_said[one.location.key]:
            yield _text(left + _SIDE + 10, y, said.granularity, "good")
            lines = list(_wrapped(left + _SIDE + 10, y + _LINE, said.text, 25, 3))
            yield from lines
            y += _LINE * (len(lines) + 1)


def _image(run: RunFolder, one: PairFacts, left: int, top: int) -> str:
    image = Image.open(io.BytesIO(read_image_at(run, one.location))).convert("RGB")
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    size = f'x="{left}" y="{top}" width="{image.width}" height="{image.height}"'
    return f'<image {size} href="data:image/jpeg;base64,{data}"/>'


def _wrapped(left: int, top: int, text: str, width: int, n_lines: int) -> Iterator[str]:
    is_wide = any(unicodedata.east_asian_width(c) in "WF" for c in text)
    width = width // 2 if is_wide else width
    lines = textwrap.wrap(text, width, max_lines=n_lines, placeholder=" ...")
    for number, line in enumerate(lines):
        yield _text(left, top + number * _LINE, line)


def _text(left: int, top: int, text: str, kind: str = "") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text x="{left}" y="{top}"{of_kind}>{html.escape(text)}</text>'


if __name__ == "__main__":
    main()
