"""Runs one stage of a run folder on whichever runner the options name."""

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline.config.curation import CurationConfig, ImageTextSource
from pipeline.config.fingerprint import fingerprint
from pipeline.engine import started_jobs
from pipeline.engine.counters import Counters as Counters
from pipeline.engine.counters import sum_counters
from pipeline.engine.run_folder import RunFolder
from pipeline.sources.shards import Lot, Shard
from pipeline.storage import files, patterns, remembered_listings

_LOCAL = ("", "direct", "fnapi")
_MAX_IN_GRAPH = 1_000  # shards
_N_PER_FILE = 100  # lots
_N_WRITTEN_AT_ONCE = 16


def is_local(options: PipelineOptions) -> bool:
    """Whether all work is done by this process and its children."""
    return _name(options) in _LOCAL


def named_inputs(config: CurationConfig) -> list[tuple[str, str]]:
    """What a run reads, by the names of a user: (name, path or pattern)."""
    sets = (*config.sources, *config.evaluation_sets, *config.seed_sets)
    imports = [g for g in config.granularities if g.captioner == "imported"]
    drop_lists = patterns.as_tuple(config.selection.drop_list)
    return [
        *(("drop_list", text) for text in drop_lists if text),
        *((one.name, text) for one in sets for text in patterns.as_tuple(one.pattern)),
        *((granularity.name, granularity.checkpoint) for granularity in imports),
    ]


def check_paths(options: PipelineOptions, named: Iterable[tuple[str, str]]) -> None:
    """Raises ValueError on files of this machine that workers elsewhere would look for.

    Asked of Dataflow alone: a cluster of one's own may share a file system.
    """
    if _name(options) != "dataflow":
        return
    for name, path in named:
        if path and not files.is_remote(path):
            expected = "a path that workers of Dataflow see, such as gs://..."
            raise ValueError(f"{name}={path}: expected {expected}")


def run_stage(
    run: RunFolder,
    lots: Iterable[Lot],
    stage: str,
    transform: beam.PTransform,
    options: PipelineOptions,
) -> Counters:
    """Runs one stage to its end."""
    listed = "List lots" >> ListLots(run.root, lots)
    return run_job(run.root, stage, listed | stage.capitalize() >> transform, options)


def run_job(
    root: str, stage: str, transform: beam.PTransform, options: PipelineOptions
) -> Counters:
    """Runs one job of a run folder to its end.

    Beam's own DirectRunner would first try to download another runner.

    Raises:
      RuntimeError: if the job failed, or somebody has cancelled it.
    """
    # Of worker processes each core has one. NumPy of this process is loaded already.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    runner = FnApiRunner() if is_local(options) else None
    pipeline = beam.Pipeline(runner, options=options)
    _ = pipeline | transform
    with remembered_listings.not_kept():  # workers write
        result = pipeline.run()
        with started_jobs.named_in_lock(root, stage, result, options):
            result.wait_until_finish()
    return sum_counters(result.metrics(), stage)


def _name(options: PipelineOptions) -> str:
    """The runner as Beam reads it: in any case, with or without "Runner"."""
    name = options.view_as(StandardOptions).runner or ""
    return name.rpartition(".")[2].lower().removesuffix("runner")


class ListLots(beam.PTransform):
    """Maps the beginning of a pipeline to PCollection[Lot].

    The lots of a few shards travel in the graph of the job. Many would exceed its size
    limit (20 MB on Dataflow), so they travel in files in RUN/lots, named by what they
    hold.
    """

    def __init__(self, root: str, lots: Iterable[Lot]) -> None:
        super().__init__()
        self._root = root
        self._lots = tuple(lots)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[Lot]:
        if sum(len(lot.shards) for lot in self._lots) <= _MAX_IN_GRAPH:
            return begin | "Create lots" >> beam.Create(self._lots)
        key_to_source = {_source_key(lot.source): lot.source for lot in self._lots}
        return (
            begin
            | "Create paths" >> beam.Create(write_lists(self._root, self._lots))
            | "Read lists" >> beam.FlatMap(read_list, key_to_source)
            | "Distribute lots" >> beam.Reshuffle()
        )


def write_lists(root: str, lots: Sequence[Lot]) -> list[str]:
    """Paths of files that hold all lots, written unless they are there."""
    folder = files.join(root, "lots")
    path_to_lots = {}
    for first in range(0, len(lots), _N_PER_FILE):
        part = lots[first : first + _N_PER_FILE]
        names = [(_source_key(lot.source), lot.name, lot.predecessor) for lot in part]
        name = fingerprint("lots", names)  # which say what shards they have
        path_to_lots[files.join(folder, f"{name}.json")] = part
    there = files.list_folder(folder, suffix=".json")
    missing = path_to_lots.keys() - there.keys()
    with futures.ThreadPoolExecutor(_N_WRITTEN_AT_ONCE) as executor:
        list(executor.map(lambda path: _write_list(path, path_to_lots[path]), missing))
    return list(path_to_lots)


def _write_list(path: str, lots: Iterable[Lot]) -> None:
    listed = [
        (
            *(_source_key(lot.source), lot.name, lot.predecessor),
            [(shard.uri, shard.mark) for shard in lot.shards],
        )
        for lot in lots
    ]
    files.write(path, json.dumps(listed).encode())


def read_list(path: str, key_to_source: Mapping[str, ImageTextSource]) -> Iterator[Lot]:
    """The lots that one file holds."""
    for key, name, predecessor, places in json.loads(files.read(path)):
        source = key_to_source[key]
        shards = tuple(Shard(source, *place) for place in places)
        yield Lot(source, name, shards, predecessor)


@functools.cache
def _source_key(source: ImageTextSource) -> str:
    """Identifies a source: a set of seeds may have the name of a source."""
    return fingerprint("source", source)
