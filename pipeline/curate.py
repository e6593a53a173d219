"""The method: score, select, caption, export.

Each stage is one Beam pipeline over the units of a run. It reads tables of earlier
stages, writes what is missing of its own, and returns its counters; a stage that finds
everything there returns none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import (
    captioner_handler,
    captioning,
    drop_list,
    export,
    flagging,
    prompts,
    scoring,
    selection,
    sources,
)
from pipeline.config import Granularity
from pipeline.run_folder import RunFolder
from pipeline.runners import Counters, run_stage


def score(run: RunFolder, options: PipelineOptions) -> Counters:
    """Measures every pair: what it is, its language, its embedding."""
    units = (*run.units, *run.evaluation_units, *run.seed_units)
    handler = scoring.EncoderHandler(run.config.encoder)
    stage = scoring.Score(run, handler)
    return run_stage(run, units, scoring.STAGE, stage, options)


def select(run: RunFolder, options: PipelineOptions) -> Counters:
    """Decides which pairs to keep, from measurements and thresholds alone."""
    if selection.is_complete(run):
        selection.restore_ledger(run)
        return {}
    return run_stage(run, run.units, selection.STAGE, selection.Select(run), options)


def select_sample(sample: RunFolder, options: PipelineOptions) -> Counters:
    """`select` of a part of a run, which keeps its own ledger."""
    if selection.is_complete(sample):
        return {}
    transform = selection.Select(sample, is_sample=True)
    return run_stage(sample, sample.units, selection.STAGE, transform, options)


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
    captioned = run_stage(run, run.units, captioning.STAGE, transform, options)
    return {**captioned, **flag(run, options)}


def flag(run: RunFolder, options: PipelineOptions) -> Counters:
    """Says what is doubtful about captions, and drops none."""
    if not run.config.granularities or flagging.is_complete(run):
        return {}
    return run_stage(run, run.units, flagging.STAGE, flagging.Flag(run), options)


def export_shards(run: RunFolder, options: PipelineOptions) -> Counters:
    """Writes the training shards of kept images with their captions."""
    flagged = flag(run, options)
    if export.is_complete(run):
        return flagged
    return {
        **flagged,
        **run_stage(run, run.units, export.STAGE, export.Export(run), options),
    }


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
