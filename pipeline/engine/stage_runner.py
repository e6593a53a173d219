"""Runs one stage of a run folder on whichever runner the options name."""

import collections
from collections.abc import Iterable, Mapping

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline.config.curation import CurationConfig
from pipeline.engine.run_folder import RunFolder
from pipeline.engine.work_list import ListUnits
from pipeline.sources.shards import Unit
from pipeline.storage import files, patterns

Counters = Mapping[str, int]

_LOCAL = ("", "direct", "fnapi")


def is_local(options: PipelineOptions) -> bool:
    """Whether all work is done by this process and its children."""
    return _name(options) in _LOCAL


def check_paths(options: PipelineOptions, output: str, config: CurationConfig) -> None:
    """Raises ValueError on files of this machine that workers elsewhere would look for.

    Asked of Dataflow alone: a cluster of one's own may share a file system.
    """
    if _name(options) != "dataflow":
        return
    sets = (*config.sources, *config.evaluation_sets, *config.seed_sets)
    imports = [g for g in config.granularities if g.captioner == "imported"]
    paths = [
        ("--output", output),
        ("drop_list", config.selection.drop_list),
        *((one.name, text) for one in sets for text in patterns.texts(one.pattern)),
        *((granularity.name, granularity.checkpoint) for granularity in imports),
    ]
    for name, path in paths:
        if path and not files.is_remote(path):
            expected = "a path that workers of Dataflow see, such as gs://..."
            raise ValueError(f"{name}={path}: expected {expected}")


def run_stage(
    run: RunFolder,
    units: Iterable[Unit],
    stage: str,
    transform: beam.PTransform,
    options: PipelineOptions,
) -> Counters:
    """Runs one stage to its end.

    Beam's own DirectRunner would first try to download another runner.
    """
    runner = FnApiRunner() if is_local(options) else None
    pipeline = beam.Pipeline(runner, options=options)
    listed = pipeline | "List units" >> ListUnits(run.root, units)
    _ = listed | stage.capitalize() >> transform
    result = pipeline.run()
    result.wait_until_finish()
    found = result.metrics().query(MetricsFilter().with_namespace(stage))
    totals: collections.Counter[str] = collections.Counter()
    for counter in found["counters"]:  # one a step, and steps share names
        # A portable runner tells one of two results; 0 or nothing is None to Beam.
        totals[counter.key.metric.name] += counter.result or 0
    return totals


def _name(options: PipelineOptions) -> str:
    """As Beam itself reads it: of any case, with or without its last word."""
    name = options.view_as(StandardOptions).runner or ""
    return name.rpartition(".")[2].lower().removesuffix("runner")
