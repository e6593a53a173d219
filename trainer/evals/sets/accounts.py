"""What an evaluation set holds, what of it was used, and why the rest was not.

Found = used + left out, by reason: samples that no task asked for, samples without
what it needs, and files that are no samples.
"""

import collections
from collections.abc import Iterator

HASHED, NAMED, NONE = "hashed", "named", "none"


class Account:
    """Counts of one evaluation, which may read the set several times."""

    def __init__(self) -> None:
        self.split = NONE  # who said which samples are for training
        self.n_used = 0
        self.n_empty_captions = 0
        self._left_out: collections.Counter[str] = collections.Counter()
        self._asked: set[str] = set()
        self._warnings: dict[str, None] = {}
        self.begin()

    def begin(self) -> None:
        """Starts a reading, whose counts replace those of the one before."""
        self._unread: collections.Counter[str] = collections.Counter()
        self._by_split: collections.Counter[str] = collections.Counter()

    def count_unread(self, reason: str, n: int = 1) -> None:
        """Counts something that is no sample."""
        self._unread[reason] += n

    def count_read(self, split: str) -> None:
        """Counts a sample of a split."""
        self._by_split[split] += 1

    def mark_asked(self, *splits: str) -> None:
        """Notes the splits that a task asks for."""
        self._asked.update(splits)

    def count_used(self) -> None:
        """Counts a sample that a task uses."""
        self.n_used += 1

    def count_left_out(self, reason: str) -> None:
        """Counts a sample that was asked for and cannot be used."""
        self._left_out[reason] += 1

    def warn(self, text: str) -> None:
        """Notes a warning, which is printed once."""
        self._warnings[text] = None

    @property
    def n_found(self) -> int:
        """The number of samples and of other things found."""
        return self._by_split.total() + self._unread.total()

    def reasons(self) -> dict[str, int]:
        """Returns the number of things left out, by reason."""
        others = {
            f"split {split}": n
            for split, n in sorted(self._by_split.items())
            if split not in self._asked
        }
        return {**dict(self._unread + self._left_out), **others}

    def summary(self) -> dict[str, object]:
        """Returns the counts for the results."""
        found: dict[str, object] = {
            "n_found": self.n_found,
            "n_used": self.n_used,
            "left_out": self.reasons(),
            "splits": dict(sorted(self._by_split.items())),
        }
        if self.n_empty_captions:
            found["n_empty_captions"] = self.n_empty_captions
        if self._warnings:
            found["warnings"] = list(self._warnings)
        return found

    def lines(self) -> Iterator[str]:
        """Yields what the user has to know, line by line."""
        if left := self.summarize_left_out():
            yield left
        if self.split == HASHED:
            n_test = self._by_split["test"]
            yield (
                f"no sign of a split: {n_test} of {self._by_split.total()} images, by a"
                " hash of their keys, are the test images"
            )
        if self.n_empty_captions:
            yield f"{self.n_empty_captions} empty captions were left out"
        yield from self._warnings

    def summarize_left_out(self) -> str:
        """Returns how much was left out, and why.

        Training images that no task asked for are not reported.
        """
        reasons = self.reasons()
        reasons.pop("split train", None)
        if not reasons:
            return ""
        reasons_said = ", ".join(f"{n} {why}" for why, n in _first(reasons))
        return f"{sum(reasons.values())} of {self.n_found} left out: {reasons_said}"


def _first(reasons: dict[str, int], n_shown: int = 6) -> Iterator[tuple[str, int]]:
    """The most frequent ones, and the number of the others."""
    ordered = sorted(reasons.items(), key=lambda one: -one[1])
    yield from ordered[:n_shown]
    if rest := sum(n for _, n in ordered[n_shown:]):
        yield "for other reasons", rest
