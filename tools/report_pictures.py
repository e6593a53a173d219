"""Photographs the report of a run for the README, with Chromium.

    python -m tools.report_pictures --report demo/run/report/index.html \
        --output docs/images

Writes `report_funnel.png`, the funnel with one threshold moved, and
`report_captions.png`, the first captions. `apt-get install chromium` installs the
browser.
"""

import argparse
import io
import pathlib
import tempfile

from PIL import Image

from tools.chromium import Page, browser, executable

WIDTH = 1120  # CSS pixels
N_COLORS = 128
MOVED = ("selection.alignment.min_score", 0.6)
_MOVE = """(() => {{
  const slider = document.querySelector('input[type=range][data-path="{path}"]');
  slider.value = "{value}";
  slider.dispatchEvent(new Event("input"));
}})()"""
_LOAD_IMAGES = """Promise.all([...document.images].map((image) => {
  image.loading = "eager";
  return image.decode().catch(() => null);
})).then(() => null)"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for flag in ("--report", "--output"):
        parser.add_argument(flag, type=pathlib.Path, required=True)
    flags = parser.parse_args()
    if executable() is None:
        parser.error("expected Chromium: apt-get install chromium")
    flags.output.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as profile,
        browser(pathlib.Path(profile)) as page,
    ):
        name_to_png = photograph(page, flags.report)
    for name, png in name_to_png.items():
        (flags.output / f"{name}.png").write_bytes(shrink(png))


def photograph(page: Page, report: pathlib.Path) -> dict[str, bytes]:
    """The PNG of each picture, by name."""
    page.resize(WIDTH)
    page.dark(False)
    page.open(report)
    page.run(_LOAD_IMAGES)
    captions = page.screenshot_of("#captions", max_height=600)
    path, value = MOVED
    page.run(_MOVE.format(path=path, value=value))
    funnel = page.screenshot_of("#funnel .split", max_height=760)
    return {"report_funnel": funnel, "report_captions": captions}


def shrink(png: bytes) -> bytes:
    """The same picture with a palette of `N_COLORS`."""
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(N_COLORS)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    main()
