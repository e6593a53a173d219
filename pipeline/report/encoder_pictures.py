"""Pictures by `trainer.pictures`, for the page of a run.

In: a folder with PNG files. Out: names and `data:` URLs of the first files by name.
They are encoded again, at a smaller size where needed.
"""

from typing import NamedTuple

from pipeline.config.curation import Limits
from pipeline.report import thumbnails
from pipeline.storage import files
from recipes.safe_text import visible

FOLDER = "pictures"  # where a run folder has them by default
N_PICTURES = 16
_MAX_BYTES = 120_000  # of each: 2.6 MB on the page, whose limit is 25 MB
_MAX_SIDE_PX = 1200


class EncoderPicture(NamedTuple):
    """One picture as the page shows it."""

    name: str
    address: str  # a `data:` URL; "" if the file is no image


def find(folder: str) -> tuple[str, ...]:
    """Returns paths of the first `N_PICTURES` PNG files by name."""
    return tuple(sorted(files.list_folder(folder, suffix=".png")))[:N_PICTURES]


def read_pictures(folder: str, limits: Limits) -> list[EncoderPicture]:
    """Reads the pictures that `find` lists."""
    size = {"max_side_px": _MAX_SIDE_PX, "max_bytes": _MAX_BYTES}
    return [
        EncoderPicture(
            visible(path.rpartition("/")[2]),
            thumbnails.data_url(files.read(path), limits, **size),
        )
        for path in find(folder)
    ]
