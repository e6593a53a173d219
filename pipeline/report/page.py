"""The report page of a run: RUN/report/index.html.

In: a run whose pairs are decided, its ledger, and optionally another run to compare
with. Out: one self-contained file that opens from a disk or a bucket. The same tables
always give the same bytes, at most 25 MB: the page shows a fixed number of pairs, and
has a sample of pairs for its thresholds.
"""

import base64
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from pipeline.engine.run_folder import RunFolder
from pipeline.records import VERSION
from pipeline.report import encoder_pictures, sections, threshold_sliders, thumbnails
from pipeline.report.page_data import (
    PageData,
    nearest_to_thresholds,
    pairs_on_page,
    read_page_data,
)
from pipeline.report.run_comparison import OtherRun
from pipeline.storage import files

_FOLDER = pathlib.Path(__file__).parent


def write(
    run: RunFolder,
    ledger: Mapping[str, Any],
    other: OtherRun | None = None,
    pictures: str = "",
) -> str:
    """Writes the page and returns its path.

    Args:
      run: A run with decisions.
      ledger: Its ledger.
      other: Another run to compare with.
      pictures: Folder with pictures by `trainer.pictures`; by default `RUN/pictures`.
    """
    data = read_page_data(run, ledger, other)
    folder = pictures or files.join(run.root, encoder_pictures.FOLDER)
    encoder_views = encoder_pictures.read_pictures(folder, run.config.limits)
    path = files.join(run.root, "report", "index.html")
    files.write(path, render_html(data, other, encoder_views).encode())
    return path


def render_html(
    data: PageData,
    other: OtherRun | None,
    pictures: Sequence[encoder_pictures.EncoderPicture] = (),
) -> str:
    """Returns the page as HTML."""
    on_page, nearest = pairs_on_page(data), nearest_to_thresholds(data)
    location_to_url = thumbnails.draw_pairs(data.run, (*on_page, *nearest))
    key_to_picture = {place.key: url for place, url in location_to_url.items()}
    shown_keys = {one.location.key for one in on_page}
    other_pictures = {k: v for k, v in key_to_picture.items() if k not in shown_keys}
    script_data = threshold_sliders.to_json(
        data.sample,
        data.steps,
        data.counts,
        other_pictures,
    )
    page = sections.make_sections(data, other, pictures) | {"pictures": key_to_picture}
    return _render(page, script_data)


def _render(page: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Fills in the template; its policy allows style and script by their hashes."""
    style, script = (_FOLDER / name for name in ("page.css", "page.js"))
    style_text, script_text = style.read_text(), script.read_text()
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash_source(style_text)}; script-src {_hash_source(script_text)}"
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html.j2").render(
        page=page,
        policy=policy,
        version=VERSION,
        style=style_text,
        script=script_text,
        data=_script_json(data),
    )


def _hash_source(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _script_json(data: Mapping[str, Any]) -> str:
    """JSON that cannot close its script element: markup characters are escaped."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
