"""The formats of training shards: their folders, their suffixes and their writers."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pipeline.export import tfrecords, webdataset
from pipeline.records import Sample
from pipeline.storage import files


@dataclasses.dataclass(frozen=True)
class ShardFormat:
    """One format of shards."""

    name: str
    folder: str  # in the run folder
    suffix: str
    # Writes samples to a local file, with captions of these granularities; returns the
    # offset and length of each in it.
    write_local: Callable[[str, Iterable[Sample], Sequence[str]], np.ndarray]

    def path(self, run_folder: str) -> str:
        """The folder of the shards of a run."""
        return files.join(run_folder, self.folder)

    @property
    def errors(self) -> str:
        """The name of its tables of errors: each format has failures of its own."""
        return f"export-{self.folder}"

    def shard_name(self, lot_base: str, number: int, digest: str) -> str:
        """The name of a shard of a lot, by its number in the lot and its contents."""
        return f"train-{lot_base}-{number:05d}-{digest}{self.suffix}"


TFRECORD = ShardFormat("tfrecord", "tfrecords", ".tfrecord", tfrecords.write_local)
WEBDATASET = ShardFormat("webdataset", "webdataset", ".tar", webdataset.write_local)

NAME_TO_FORMAT = {each.name: each for each in (TFRECORD, WEBDATASET)}
