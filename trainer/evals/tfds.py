"""Data sets of TensorFlow Datasets, as rows. Nothing is downloaded.

The package is imported when such a set is asked for, and need not be there otherwise.
"""

import dataclasses
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

PREFIX = "tfds:"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set that lies on disk."""

    place: str
    builder: Any  # tfds.core.DatasetBuilder

    @property
    def label_names(self) -> tuple[str, ...]:
        label = dict(self.builder.info.features.items()).get("label")
        return tuple(getattr(label, "names", None) or ())

    def rows(self, splits: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(key, row) of its splits that are among these, in their own order."""
        import tensorflow_datasets as tfds

        for split in (name for name in self.builder.info.splits if name in splits):
            rows = self.builder.as_dataset(split=split, shuffle_files=False)
            for number, row in enumerate(tfds.as_numpy(rows)):
                yield f"{split}-{number}", {**_row(row), "split": split}


def open_set(place: str) -> Prepared:
    """`tfds:NAME`, or `tfds:FOLDER` of a set. Raises ValueError if it is not there."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            f"{place}: expected the package tensorflow_datasets to be installed"
        ) from error
    name = place.removeprefix(PREFIX)
    is_folder = pathlib.Path(name).is_dir()
    try:
        builder = tfds.builder_from_directory(name) if is_folder else tfds.builder(name)
    except (tfds.core.DatasetNotFoundError, OSError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error
    if not builder.data_path.exists():
        raise ValueError(f"{place}: expected it to be prepared in {builder.data_path}")
    return Prepared(place, builder)


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """With strings for bytes, and captions out of the structures they come in."""
    captions = row.get("captions")
    if isinstance(captions, Mapping):  # COCO's: a sequence of {text, id}
        captions = captions.get("text")
    found = {name: _text(value) for name, value in row.items()}
    if captions is not None:
        found["captions"] = [_text(caption) for caption in captions]
    return found


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
