"""Tars of webdataset and img2dataset, as samples.

Only headers and texts are read; images stay in the tar until they are needed.
"""

import dataclasses
import io
import pathlib
import tarfile
from collections.abc import Iterator

from trainer.evals.sets import listing, splits
from trainer.evals.sets.accounts import Account
from trainer.evals.sets.files import read_sample
from trainer.evals.sets.label_names import Names
from trainer.evals.sets.samples import Place, Sample, SampleError, Stored, errors_about

Member = tuple[str, Stored | bytes]


@dataclasses.dataclass(frozen=True)
class Tars:
    """The tars of a set."""

    root: pathlib.Path
    paths: list[pathlib.Path]
    names: Names

    def read(self, account: Account) -> Iterator[Sample]:
        """Yields samples, and counts members that are none."""
        for path in self.paths:
            with errors_about(str(path)):
                split = splits.split_of_path(listing.parts(path, self.root))
                yield from self._samples(path, split, account)

    def places(self) -> Iterator[Place]:
        """Yields where samples are."""
        return (one.place for one in self.read(Account()))

    def _samples(
        self, path: pathlib.Path, split: str | None, account: Account
    ) -> Iterator[Sample]:
        for key, contents in listing.group_by_key(_members(path, account), account):
            place, name = Place(key, split), f"{path}: {key}"
            sample = read_sample(place, name, contents, {}, self.names, account)
            if sample:
                yield sample


def _members(path: pathlib.Path, account: Account) -> Iterator[Member]:
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = member.name.strip("/").removeprefix("./")
                if member.isdir():
                    continue
                if any(part.startswith(".") for part in name.split("/")):
                    account.count_unread("hidden")
                elif (file := _content(path, tar, member)) is None:
                    account.count_unread("link or device without a file")
                else:
                    yield name, file
    except (tarfile.TarError, EOFError) as error:
        raise SampleError(f"{path}: {error}") from error


def _content(
    path: pathlib.Path, tar: tarfile.TarFile, member: tarfile.TarInfo
) -> Stored | bytes | None:
    """A part of the tar; links and sparse members have none of their own."""
    is_plain = isinstance(tar.fileobj, io.BufferedReader)  # and not compressed
    if is_plain and member.isreg() and not member.issparse():
        return Stored(path, member.offset_data, member.size)
    try:
        file = tar.extractfile(member)
    except KeyError:  # the file that a link names is not there
        return None
    return file.read() if file else None
