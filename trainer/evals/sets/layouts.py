"""Which samples of a set belong to which split, once all signs of it are known."""

import dataclasses
from collections.abc import Iterable, Mapping

from trainer.evals.sets import splits
from trainer.evals.sets.samples import Place, SampleError
from trainer.evals.sets.splits import Folder
from trainer.split_names import TEST, VALIDATION, find_sign


@dataclasses.dataclass(frozen=True)
class ScoredSplit:
    """The split to score: the one of a setting, else the preferred one, else `test`."""

    given: str = ""
    preferred: str = ""


USUAL = ScoredSplit()


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a set names its splits, and which of them is scored."""

    folders: Mapping[Folder, str]  # that are splits
    is_by_stem: bool  # `COCO_val2014_000000000042`
    outer: str | None  # what the name of the set's own folder says
    scored: str = TEST
    by_domain: Mapping[str | None, frozenset[str | None]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def splits(self) -> set[str | None]:
        """The splits of all samples; None is a sample without one."""
        return set().union(*self.by_domain.values())

    def named(self, place: Place) -> str | None:
        """Returns the split of a sample, as the set names it."""
        found = place.split or splits.split_of_folder(place.folders, self.folders)
        if found is None and self.is_by_stem:
            sign = find_sign(place.stem)
            found = sign.split if sign else None
        return found or self.outer

    def role(self, place: Place) -> str | None:
        """Returns `train`, `test` (which is scored), `index`, or an unused split."""
        named = self.named(place)
        if named == self.scored:
            return TEST
        return "unscored test" if named == TEST else named

    def check(self, place: str, *, is_by_domain: bool = False) -> None:
        """Raises SampleError if some samples belong to a split and others to none."""
        parts = self.by_domain.values() if is_by_domain else [self.splits]
        for part in parts:
            if None in part and len(part) > 1:
                named = ", ".join(sorted(split for split in part if split))
                raise SampleError(
                    f"{place}: some images are of a split ({named}), others of none:"
                    " expected names of splits for all of them, or for none"
                )


def survey(
    place: str, places: Iterable[Place], outer: str | None, wanted: ScoredSplit
) -> Layout:
    """Finds how a set names its splits.

    Raises SampleError if names contradict each other, or the setting names no split.
    """
    kept = _PlaceSurvey()
    for one in places:
        kept.add(one)
    folders = splits.find_split_folders(kept.folders)
    is_signed = bool(folders) or any(one.split for one in kept.places)
    is_by_stem = not is_signed and kept.are_stems_signed(place)
    inner = Layout(folders, is_by_stem, None)
    is_named = any(inner.named(one) for one in kept.places)
    layout = dataclasses.replace(inner, outer=None if is_named else outer)
    by_domain: dict[str | None, set[str | None]] = {}
    for one in kept.places:
        by_domain.setdefault(one.domain, set()).add(layout.named(one))
    frozen = {domain: frozenset(found) for domain, found in by_domain.items()}
    layout = dataclasses.replace(layout, by_domain=frozen)
    return dataclasses.replace(
        layout, scored=_choose_scored(place, layout.splits, wanted)
    )


class _PlaceSurvey:
    """One place per folder, split and domain, and the splits in names of files."""

    def __init__(self) -> None:
        self._places: dict[tuple, Place] = {}
        self.n_signed = 0
        self.n = 0
        self.example = ""

    def add(self, place: Place) -> None:
        sign = find_sign(place.stem)
        if sign and place.folders and find_sign(place.folders[-1]) == sign:
            sign = None  # `train/train_001.jpg`, of a class
        key = place.folders, place.split, place.domain, sign and sign.split
        self._places.setdefault(key, place)
        self.n += 1
        if sign:
            self.n_signed += 1
            self.example = place.key if sign.is_whole else self.example

    @property
    def places(self) -> Iterable[Place]:
        return self._places.values()

    @property
    def folders(self) -> set[Folder]:
        return {one.folders for one in self.places if one.split is None}

    def are_stems_signed(self, place: str) -> bool:
        found = {split for *_, split in self._places if split}
        if 0 < self.n_signed < self.n and (len(found) > 1 or self.example):
            raise SampleError(
                f"{place}: {self.n_signed} of {self.n} names of images are of a split"
                f" ({', '.join(sorted(found))}), others of none"
            )
        return 0 < self.n_signed == self.n


def _choose_scored(place: str, found: set[str | None], wanted: ScoredSplit) -> str:
    """`test` before `validation`, unless a setting or a recipe says otherwise."""
    named = sorted(split for split in found if split)
    if wanted.given and wanted.given not in named:
        expected = f"one of {', '.join(named)}" if named else "a set with splits"
        raise SampleError(f"{place}: no split {wanted.given}, expected {expected}")
    order = (wanted.given, wanted.preferred, TEST, VALIDATION)
    return next((split for split in order if split in named), TEST)
