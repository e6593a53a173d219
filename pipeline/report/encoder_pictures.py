"""Pictures that `trainer.pictures` has drawn, for the page of a run.

In: a folder with PNGs. Out: their names and `data:` addresses, the first of them by
name. They are encoded again, smaller if they must be.
"""

from typing import NamedTuple

from pipeline.config.curation import Limits
from pipeline.report import thumbnails
from pipeline.storage import files
from recipes.safe_text import visible

FOLDER = "pictures"  # of a run, where they are looked for
N_PICTURES = 16
_MAX_BYTES = 120_000  # of each: 2.6 MB on the page, whose limit is 25 MB
_MAX_SIDE_PX = 1200


class Shown(NamedTuple):
    name: str
    address: str  # "" if the file is no image


def find(folder: str) -> tuple[str, ...]:
    return tuple(sorted(files.listed(folder, suffix=".png")))[:N_PICTURES]


def read(folder: str, limits: Limits) -> list[Shown]:
    size = {"max_side_px": _MAX_SIDE_PX, "max_bytes": _MAX_BYTES}
    return [
        Shown(
            visible(path.rpartition("/")[2]),
            thumbnails.address(files.read(path), limits, **size),
        )
        for path in find(folder)
    ]
