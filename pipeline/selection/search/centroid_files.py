"""Files of centroids: the final ones of a training, and those of its rounds.

In: the path of a training's record, `RUN/clusters/<name>.json`. Out: the record, which
names the final centroids by their checksum. While the training goes on, the folder
`<name>.training` beside it holds its sample, and the centroids and a record of each
round.
"""

import dataclasses
import hashlib
import json

import faiss
import numpy as np

from pipeline.selection.search import reference_sets
from pipeline.selection.search.reference_sets import ReferenceSet
from pipeline.storage import files


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a training has come."""

    n_recorded: int  # sets of centroids, of which the first are proposals
    path: str  # of the latest centroids
    is_trained: bool = False


@dataclasses.dataclass(frozen=True)
class TrainingFiles:
    """The files of one training."""

    record: str

    @property
    def working_folder(self) -> str:
        """The folder that holds what is not needed after the training."""
        return self.record.removesuffix(".json") + ".training"

    def find_progress(self) -> Progress:
        """Looks for recorded centroids, and checks the latest ones.

        Raises:
          ValueError: if they have another checksum than their record.
        """
        if files.is_file(self.record):
            self._remove_working_folder()
            return Progress(0, read_recorded_centroids(self.record), is_trained=True)
        n_recorded = 0
        while files.is_file(self._record_of(n_recorded)):
            n_recorded += 1
        if not n_recorded:
            return Progress(0, "")
        latest = read_recorded_centroids(self._record_of(n_recorded - 1))
        return Progress(n_recorded, latest)

    def write(self, number: int, vectors: np.ndarray) -> str:
        """Writes and records a set of centroids; returns its path."""
        path = write_centroids(vectors, self.working_folder)
        record_centroids(path, self._record_of(number))
        return path

    def finish(self, path: str) -> str:
        """Records the final centroids; returns the path where they stay."""
        data = files.read(path)
        folder, name = files.split(self.record)[0], files.split(path)[1]
        final = files.join(folder, name)
        files.write(final, data)
        record_centroids(final, self.record)
        self._remove_working_folder()
        return final

    def _record_of(self, number: int) -> str:
        return files.join(self.working_folder, f"centroids-{number}.json")

    def _remove_working_folder(self) -> None:
        parent, name = files.split(self.working_folder)
        if files.list_below(self.working_folder):
            files.delete_folder(parent, name)


def write_centroids(vectors: np.ndarray, folder: str) -> str:
    """Writes an index of vectors, named by its checksum; returns its path."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    data = faiss.serialize_index(index).tobytes()
    path = files.join(folder, f"centroids-{_checksum(data)}.faiss")
    files.write(path, data)
    return path


def open_centroids(path: str) -> ReferenceSet:
    """Maps a file of centroids into memory."""
    return ReferenceSet(
        "clusters", reference_sets.open_index(path), np.empty(0, object)
    )


def record_centroids(path: str, record: str) -> None:
    """Writes the name of a file of centroids in the same folder to `record`."""
    checksum = _checksum(files.read(path))
    account = {"file": files.split(path)[1], "blake2b": checksum}
    files.write(record, json.dumps(account).encode() + b"\n")


def read_recorded_centroids(record: str) -> str:
    """Returns the path of the centroids that a record names.

    Raises:
      ValueError: if the file has another checksum than the record.
    """
    account = json.loads(files.read(record))
    path = files.join(files.split(record)[0], account["file"])
    found = _checksum(files.read(path))
    if found != account["blake2b"]:
        expected = account["blake2b"]
        raise ValueError(f"{path}: checksum {found}, expected {expected}")
    return path


def _checksum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
