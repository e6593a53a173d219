"""The page that shows what happened: RUN/report/index.html.

In: a run whose pairs are decided on, its ledger, and another run to compare with. Out:
one file without any address but its own, which opens from a disk and from a bucket. It
is the same whenever it is made of the same tables, and at most 25 MB: it shows a fixed
number of pairs, and a sample for the thresholds.
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
from pipeline.report.page_data import Looked, look, nearest_to_thresholds, shown
from pipeline.report.run_comparison import OtherRun
from pipeline.storage import files

_FOLDER = pathlib.Path(__file__).parent


def write(
    run: RunFolder,
    ledger: Mapping[str, Any],
    other: OtherRun | None = None,
    seen: str = "",
) -> str:
    """Writes the page; returns its path.

    `seen` is a folder with pictures of what an encoder sees; by default that of the
    run, if there is one.
    """
    looked = look(run, ledger, other)
    folder = seen or files.join(run.root, encoder_pictures.FOLDER)
    shown = encoder_pictures.read(folder, run.config.limits)
    path = files.join(run.root, "report", "index.html")
    files.write(path, html(looked, other, shown).encode())
    return path


def html(
    looked: Looked, other: OtherRun | None, seen: Sequence[encoder_pictures.Shown] = ()
) -> str:
    """The page as text."""
    on_page, nearest = shown(looked), nearest_to_thresholds(looked)
    found = thumbnails.of_pairs(looked.run, (*on_page, *nearest))
    key_to_picture = {place.key: address for place, address in found.items()}
    shown_keys = {one.place.key for one in on_page}
    data = threshold_sliders.to_json(
        looked.sample,
        looked.steps,
        looked.counts,
        {key: key_to_picture[key] for key in key_to_picture.keys() - shown_keys},
    )
    page = sections.of(looked, other, seen) | {"pictures": key_to_picture}
    return _rendered(page, data)


def _rendered(page: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Fills in the template; what runs in it is named by its hash."""
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
    """JSON that can end no script: markup is written as escapes."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
