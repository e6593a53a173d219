"""The units of a stage as a collection.

A few travel in the graph of the job. Many would burst it (Dataflow takes 20 MB), so
they travel in files under RUN/units, which are named by what is in them.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam

from pipeline.config.curation import ImageTextSource, fingerprint
from pipeline.sources.shards import Unit
from pipeline.storage import files

_MAX_IN_GRAPH = 1_000
_N_PER_FILE = 10_000


class ListUnits(beam.PTransform):
    """Maps the beginning of a pipeline to PCollection[Unit]."""

    def __init__(self, root: str, units: Iterable[Unit]) -> None:
        super().__init__()
        self._root = root
        self._units = tuple(units)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[Unit]:
        if len(self._units) <= _MAX_IN_GRAPH:
            return begin | "Create units" >> beam.Create(self._units)
        key_to_source = {_key(unit.source): unit.source for unit in self._units}
        return (
            begin
            | "Create paths" >> beam.Create(write_lists(self._root, self._units))
            | "Read lists" >> beam.FlatMap(read_list, key_to_source)
            | "Distribute units" >> beam.Reshuffle()
        )


def write_lists(root: str, units: Sequence[Unit]) -> list[str]:
    """Paths of files that hold all units, written unless they are there."""
    paths = []
    for first in range(0, len(units), _N_PER_FILE):
        part = units[first : first + _N_PER_FILE]
        listed = [(_key(unit.source), unit.uri, unit.mark) for unit in part]
        data = json.dumps(listed).encode()
        digest = hashlib.blake2b(data, digest_size=6).hexdigest()
        path = files.join(root, "units", f"{digest}.json")
        if not files.is_file(path):
            files.write(path, data)
        paths.append(path)
    return paths


def read_list(
    path: str, key_to_source: Mapping[str, ImageTextSource]
) -> Iterator[Unit]:
    """The units that one file holds."""
    for key, *listed in json.loads(files.read(path)):
        yield Unit(key_to_source[key], *listed)


@functools.cache
def _key(source: ImageTextSource) -> str:
    """Names alone do not tell a set of seeds from a source."""
    return fingerprint("source", source)
