"""The kinds of training shards: where they lie in a run folder and who writes them."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pipeline.export import tfrecords, webdataset
from pipeline.records import Sample
from pipeline.storage import files


@dataclasses.dataclass(frozen=True)
class ShardFormat:
    """One kind of shard."""

    name: str
    folder: str  # in the run folder
    suffix: str
    # Writes samples, of which captions of these granularities are expected, to a file
    # of this machine and returns where each one lies in it.
    write_local: Callable[[str, Iterable[Sample], Sequence[str]], np.ndarray]

    def path(self, run_folder: str) -> str:
        """The folder of the shards of a run."""
        return files.join(run_folder, self.folder)


TFRECORD = ShardFormat("tfrecord", "tfrecords", ".tfrecord", tfrecords.write_local)
WEBDATASET = ShardFormat("webdataset", "webdataset", ".tar", webdataset.write_local)

NAME_TO_FORMAT = {each.name: each for each in (TFRECORD, WEBDATASET)}
