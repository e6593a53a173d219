"""The method: score, select, caption, export.

Each stage is one Beam pipeline over the units of a run. It reads tables of earlier
stages, writes what is missing of its own, and returns its counters; a stage that finds
everything there returns none.
"""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline import (
    captioner_handler,
    captioning,
    drop_list,
    export,
    files,
    flagging,
    prompts,
    scoring,
    selection,
    sources,
)
from pipeline.config import CurationConfig, Granularity
from pipeline.run_folder import RunFolder
from pipeline.sources import Unit

Counters = Mapping[str, int]

_LOCAL_RUNNERS = ("", "direct", "fnapi")


def score(run: RunFolder, options: PipelineOptions) -> Counters:
    """Measures every pair: what it is, its language, its embedding."""
    units = (*run.units, *run.evaluation_units, *run.seed_units)
    handler = scoring.EncoderHandler(run.config.encoder)
    return _run(units, scoring.STAGE, scoring.Score(run, handler), options)


def select(run: RunFolder, options: PipelineOptions) -> Counters:
    """Decides which pairs to keep, from measurements and thresholds alone."""
    if selection.is_complete(run):
        selection.restore_ledger(run)
        return {}
    return _run(run.units, selection.STAGE, selection.Select(run), options)


def select_sample(sample: RunFolder, options: PipelineOptions) -> Counters:
    """`select` of a part of a run, which keeps its own ledger."""
    if selection.is_complete(sample):
        return {}
    transform = selection.Select(sample, is_sample=True)
    return _run(sample.units, selection.STAGE, transform, options)


def is_local(options: PipelineOptions) -> bool:
    """Whether all work is done by this process and its children."""
    return _runner_name(options) in _LOCAL_RUNNERS


def check_paths(options: PipelineOptions, output: str, config: CurationConfig) -> None:
    """Raises ValueError on files of this machine that workers elsewhere would look for.

    Asked of Dataflow alone: a cluster of one's own may share a file system.
    """
    if _runner_name(options) != "dataflow":
        return
    sets = (*config.sources, *config.evaluation_sets, *config.seed_sets)
    paths = {"--output": output} | {
        image_set.name: image_set.pattern for image_set in sets
    }
    paths |= {"drop_list": config.selection.drop_list}
    paths |= {
        g.name: g.checkpoint for g in config.granularities if g.captioner == "imported"
    }
    for name, path in paths.items():
        if path and not files.is_remote(path):
            raise ValueError(
                f"{name}={path}: expected a path that workers of Dataflow see, gs://..."
            )


def _runner_name(options: PipelineOptions) -> str:
    """As Beam itself reads it: of any case, with or without its last word."""
    name = options.view_as(StandardOptions).runner or ""
    return name.rpartition(".")[2].lower().removesuffix("runner")


def caption(
    run: RunFolder,
    options: PipelineOptions,
    granularities: Sequence[Granularity] | None = None,
) -> Counters:
    """Captions the kept images that have no caption yet, and flags the doubtful."""
    wanted = run.config.granularities if granularities is None else granularities
    if not wanted:
        return {}
    for granularity in wanted:
        captioning.describe(run, granularity)
    transform = captioning.Caption(run, wanted)
    captioned = _run(run.units, captioning.STAGE, transform, options)
    return {**captioned, **flag(run, options)}


def flag(run: RunFolder, options: PipelineOptions) -> Counters:
    """Says what is doubtful about captions, and drops none."""
    if not run.config.granularities or flagging.is_complete(run):
        return {}
    return _run(run.units, flagging.STAGE, flagging.Flag(run), options)


def export_shards(run: RunFolder, options: PipelineOptions) -> Counters:
    """Writes the training shards of kept images with their captions."""
    flagged = flag(run, options)
    if export.is_complete(run):
        return flagged
    return {**flagged, **_run(run.units, export.STAGE, export.Export(run), options)}


STAGES: Mapping[str, Callable[[RunFolder, PipelineOptions], Counters]] = {
    "score": score,
    "select": select,
    "caption": caption,
    "export": export_shards,
}


def check(run: RunFolder) -> None:
    """Raises ValueError on settings that cannot be meant or read."""
    selection.check(run)
    if not selection.is_complete(run):  # a long list takes seconds to look through
        drop_list.check(run.drop_list)
    prompts.levels(run.config.granularities)
    for granularity in run.config.granularities:
        captioner_handler.check(granularity)
    units = (*run.units, *run.evaluation_units, *run.seed_units)
    source_to_first = {unit.source: unit for unit in reversed(units)}
    for unit in source_to_first.values():
        sources.check_columns(unit)


def ledger(run: RunFolder) -> dict[str, Any] | None:
    """What became of all pairs; None before they are decided on."""
    return selection.restore_ledger(run) if selection.is_complete(run) else None


def coverage(run: RunFolder, granularity: Granularity) -> tuple[int, int]:
    """Numbers of kept pairs that have a caption, and of all kept pairs."""
    return captioning.coverage(run, granularity, run.units)


def flag_counts(run: RunFolder) -> Mapping[str, flagging.FlagCounts]:
    """Flags by granularity; empty while captions have none."""
    return flagging.counts(run)


def _run(
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
    _ = pipeline | "List units" >> beam.Create(units) | stage.capitalize() >> transform
    result = pipeline.run()
    result.wait_until_finish()
    found = result.metrics().query(MetricsFilter().with_namespace(stage))
    totals: collections.Counter[str] = collections.Counter()
    for counter in found["counters"]:  # one a step, and steps share names
        totals[counter.key.metric.name] += counter.result
    return totals
