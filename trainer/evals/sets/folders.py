"""Folders of images, as samples.

They are [DOMAIN/][SPLIT/]CLASS, or `images` next to folders of masks, depth or normals
with files of the same names.
"""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping

from trainer.evals.sets import listing, splits
from trainer.evals.sets.accounts import Account
from trainer.evals.sets.files import read_sample
from trainer.evals.sets.label_names import FILES, Names
from trainer.evals.sets.samples import Place, Sample, Stored

IMAGES = "images"
# Folders next to `images`, with files of the same names.
_TRUTHS = {
    "masks": "mask",
    "annotations": "mask",
    "depth": "depth",
    "normals": "normals",
}


@dataclasses.dataclass(frozen=True)
class Folders:
    """The files of a folder or a glob."""

    root: pathlib.Path
    files: list[pathlib.Path]
    names: Names
    is_glob: bool = False

    def read(self, account: Account) -> Iterator[Sample]:
        """Yields samples, and counts files that are none."""
        files = ((str(path.relative_to(self.root)), path) for path in self.inner)
        for key, found in listing.group_by_key(files, account):
            split = splits.split_of_folder(Place(key).folders, self.split_folders)
            place = Place(self._key(key, found), split)
            fields = dict(zip(("label", "domain"), self._above(place), strict=False))
            contents = {ending: Stored(path) for ending, path in found.items()}
            contents |= self._truths_of(key)
            name = str(self.root / key)
            sample = read_sample(place, name, contents, fields, self.names, account)
            if sample:
                yield sample

    def places(self) -> Iterator[Place]:
        """Yields where samples are."""
        return (one.place for one in self.read(Account()))

    @functools.cached_property
    def split_folders(self) -> Mapping[splits.Folder, str]:
        """The folders that are splits."""
        return splits.find_split_folders(self.image_folders)

    @functools.cached_property
    def image_folders(self) -> set[splits.Folder]:
        """The folders with samples: licenses, lists and masks are elsewhere."""
        found = {
            path.relative_to(self.root).parts[:-1]
            for path in self.files
            if listing.is_image(path.name)
        }
        return {folder for folder in found if IMAGES in folder} or found

    @functools.cached_property
    def inner(self) -> list[pathlib.Path]:
        """The files of samples, those of a key adjacent."""
        kept = [
            path
            for path in self.files
            if path.relative_to(self.root).parts[:-1] in self.image_folders
            and path.name not in FILES
        ]
        return sorted(kept, key=lambda p: (p.parent, p.name.partition("."), p.name))

    @functools.cached_property
    def _truths(self) -> Mapping[str, pathlib.Path]:
        """Files next to `images`, by the names that they would have among them."""
        found = {}
        for path in self.files:
            *folders, name = path.relative_to(self.root).parts
            stem, _, ending = name.rpartition(".")
            kinds = [_TRUTHS[folder] for folder in folders if folder in _TRUTHS]
            if kinds and ending.lower() in ("png", "npy"):
                parts = [IMAGES if one in _TRUTHS else one for one in folders]
                key = "/".join([*parts, stem])
                found[f"{key}.{kinds[0]}.{ending.lower()}"] = path
        return found

    def _truths_of(self, key: str) -> dict[str, Stored]:
        found = {
            ending: self._truths.get(f"{key}.{ending}")
            for kind in sorted(set(_TRUTHS.values()))
            for ending in (f"{kind}.png", f"{kind}.npy")
        }
        return {ending: Stored(path) for ending, path in found.items() if path}

    @functools.cached_property
    def others(self) -> Mapping[str, int]:
        """The number of files that belong to no sample, by reason."""
        used = {*self.inner, *self._truths.values()}
        found = collections.Counter(
            f"outside of {IMAGES}"
            if listing.is_image(path.name)
            else listing.describe_ending(path.name)
            for path in self.files
            if path not in used and path.name not in FILES
        )
        stems = {path.relative_to(self.root).with_suffix("") for path in self.inner}
        keys = (pathlib.PurePath(key.rsplit(".", 2)[0]) for key in self._truths)
        if n_alone := sum(key not in stems for key in keys):
            found["map without an image"] = n_alone
        return found

    def class_like(self) -> set[str]:
        """Returns names of splits that were taken for classes."""
        return splits.find_class_like(self.image_folders, self.split_folders)

    def _key(self, key: str, found: Mapping[str, pathlib.Path]) -> str:
        """In a glob, the path of the file that it matched."""
        image = next((found[one] for one in listing.IMAGES if one in found), None)
        return str(image.relative_to(self.root)) if self.is_glob and image else key

    def _above(self, place: Place) -> list[str]:
        """Folders that are neither a split nor `images`, innermost first."""
        parents = [place.folders[:depth] for depth in range(1, len(place.folders) + 1)]
        return [
            parent[-1]
            for parent in reversed(parents)
            if parent not in self.split_folders and parent[-1] != IMAGES
        ]
