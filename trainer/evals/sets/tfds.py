"""Data sets of TensorFlow Datasets, as rows. Nothing is downloaded.

The package is imported only if such a set is used, and is optional otherwise.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.evals.sets.accounts import Account
from trainer.evals.sets.label_names import Names
from trainer.evals.sets.samples import Place, Sample, make_sample
from trainer.evals.sets.tables import COLUMNS
from trainer.split_names import find_sign

PREFIX = "tfds:"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set on disk."""

    place: str
    builder: Any  # tfds.core.DatasetBuilder

    def names(self) -> Names:
        """Returns the names of its labels."""
        label = dict(self.builder.info.features.items()).get("label")
        return Names(tuple(getattr(label, "names", None) or ()), source=self.place)

    def reader(self, names: Names) -> "Reader":
        """Returns a reader of its samples."""
        return Reader(self, names)

    @property
    def splits(self) -> Mapping[str, str | None]:
        """The names of its splits, and the split that each is understood as."""
        signs = {name: find_sign(name) for name in self.builder.info.splits}
        return {
            name: sign.split if sign and sign.is_whole else None
            for name, sign in signs.items()
        }

    def rows(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (key, row), in their own order."""
        import tensorflow_datasets as tfds

        rows = self.builder.as_dataset(split=split, shuffle_files=False)
        for number, row in enumerate(tfds.as_numpy(rows)):
            yield f"{split}-{number}", _row(row)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Samples of the splits that are understood; others are counted."""

    prepared: Prepared
    names: Names

    def read(self, account: Account) -> Iterator[Sample]:
        """Yields samples, and counts rows without an image."""
        for name, split in self.prepared.splits.items():
            if split is None:
                n = self.prepared.builder.info.splits[name].num_examples
                account.count_unread(f"split {name}", n)
            else:
                yield from self._samples(name, split, account)

    def places(self) -> Iterator[Place]:
        """Yields one place per split."""
        for name, split in self.prepared.splits.items():
            if split:
                yield Place(name, split)

    def _samples(self, name: str, split: str, account: Account) -> Iterator[Sample]:
        for key, row in self.prepared.rows(name):
            parts = {
                kind: row[column]
                for kind, columns in COLUMNS.items()
                if (column := next((c for c in columns if c in row), None))
            }
            row = {**row, "label": row.get("label_name", row.get("label"))}
            about = f"{self.prepared.place}: {key}"
            own = {key: row[key] for key in row if key != "split"}
            if sample := make_sample(Place(key, split), about, parts, own, self.names):
                yield sample
            else:
                account.count_unread("no image")


def open_set(place: str) -> Prepared:
    """Opens `tfds:NAME`, or `tfds:FOLDER`. Raises ValueError if it does not exist."""
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
    """Decodes bytes, and takes captions out of the structures that they come in."""
    captions = row.get("captions")
    if isinstance(captions, Mapping):  # COCO's: a sequence of {text, id}
        captions = captions.get("text")
    found = {name: _text(value) for name, value in row.items()}
    if captions is not None:
        found["captions"] = [_text(caption) for caption in captions]
    return found


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
