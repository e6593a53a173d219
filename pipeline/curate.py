"""The method: score, select, caption, export.

Each stage is one Beam pipeline over the units of a run. It reads tables of earlier
stages, writes what is missing of its own, and returns its counters; a stage that finds
everything there returns none.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.captioning import captioner_handler, failed_captions, flag_stage
from pipeline.captioning import coverage as captions_coverage
from pipeline.captioning import flag_counts as captions_flagged
from pipeline.captioning import stage as captioning
from pipeline.config import prompts
from pipeline.config.captions import Granularity
from pipeline.engine import scored_shards
from pipeline.engine.run_folder import RunFolder
from pipeline.engine.stage_runner import Counters, run_stage
from pipeline.export import stage as export
from pipeline.export.shard_formats import TFRECORD, ShardFormat
from pipeline.scoring import stage as scoring
from pipeline.scoring.encoder_handler import EncoderHandler
from pipeline.selection import checks, ledger, reference_accounts
from pipeline.selection import stage as selection
from pipeline.sources import drop_lists, shards
from pipeline.storage import files


def score(run: RunFolder, options: PipelineOptions) -> Counters:
    """Measures every pair: what it is, its language, its embedding."""
    changed = scored_shards.changed(run)
    handler = EncoderHandler(run.config.encoder)
    stage = scoring.Score(run, handler)
    counters = run_stage(run, run.all_units, scoring.STAGE, stage, options)
    scored_shards.expect_scored(
        run, "changed while being read", "run the same command again"
    )
    scoring.remove_outdated(run, changed)
    return counters


def select(run: RunFolder, options: PipelineOptions) -> Counters:
    """Decides which pairs to keep, from measurements and thresholds alone."""
    if ledger.is_complete(run):
        ledger.restore_ledger(run)
        return {}
    fault = "without scores of the present contents"
    scored_shards.expect_scored(run, fault, "run `score` first")
    return run_stage(run, run.units, selection.STAGE, selection.Select(run), options)


def select_sample(sample: RunFolder, options: PipelineOptions) -> Counters:
    """`select` of a part of a run, which keeps its own ledger."""
    if ledger.is_complete(sample):
        return {}
    transform = selection.Select(sample, is_sample=True)
    return run_stage(sample, sample.units, selection.STAGE, transform, options)


def caption(
    run: RunFolder,
    options: PipelineOptions,
    granularities: Sequence[Granularity] | None = None,
) -> Counters:
    """Captions the kept images that have no caption yet, and flags the doubtful.

    Raises:
      ValueError: if a granularity has no caption for any of them.
    """
    wanted = run.config.granularities if granularities is None else granularities
    if not wanted:
        return {}
    scored_shards.expect_decided(run)
    for granularity in wanted:
        captioning.describe(run, granularity)
    transform = captioning.Caption(run, wanted)
    captioned = run_stage(run, run.units, captioning.STAGE, transform, options)
    failed_captions.check(run, wanted)
    return {**captioned, **flag(run, options)}


def flag(run: RunFolder, options: PipelineOptions) -> Counters:
    """Says what is doubtful about captions, and drops none."""
    if not run.config.granularities or captions_flagged.is_complete(run):
        return {}
    return run_stage(run, run.units, flag_stage.STAGE, flag_stage.Flag(run), options)


def export_shards(
    run: RunFolder, options: PipelineOptions, shard_format: ShardFormat = TFRECORD
) -> Counters:
    """Writes the training shards of kept images with their captions."""
    scored_shards.expect_decided(run)
    flagged = flag(run, options)
    if export.is_complete(run, shard_format):
        return flagged
    transform = export.Export(run, shard_format)
    exported = run_stage(run, run.units, export.STAGE, transform, options)
    return {**flagged, **exported}


STAGES: Mapping[str, Callable[[RunFolder, PipelineOptions], Counters]] = {
    "score": score,
    "select": select,
    "caption": caption,
    "export": export_shards,
}


def check(run: RunFolder) -> None:
    """Raises ValueError on settings that cannot be meant or read."""
    checks.check_folder(run)
    checks.check(run)
    scoring.check(run)
    if not ledger.is_complete(run):
        checks.check_scored(run)
    if not files.is_file(drop_lists.table_path(run.drop_list, run.root)):
        drop_lists.check(run.drop_list)  # a long list takes minutes to look through
    prompts.levels(run.config.granularities)
    for granularity in run.config.granularities:
        captioner_handler.check(granularity)
    shards.check_columns(scored_shards.unscored_units(run))


def changes(run: RunFolder) -> Iterable[str]:
    """A line on shards that are not what they were when they were scored."""
    if changed := scored_shards.changed(run):
        is_one = len(changed) == 1
        since = "has changed since it was" if is_one else "have changed since they were"
        yield (
            f"{scored_shards.counted(changed)} {since} scored:"
            f" {scored_shards.paths_of(changed)};"
            f" `score` and `curate` score {'it' if is_one else 'them'} again"
        )


def not_compared(run: RunFolder) -> Iterable[str]:
    """A line for each set of which images were left out, once pairs are decided on."""
    return reference_accounts.warnings(run, read_ledger(run) or {})


def doubts(run: RunFolder) -> Iterable[str]:
    """Lines on settings that may not be meant."""
    return checks.doubts(run)


def read_ledger(run: RunFolder) -> dict[str, Any] | None:
    """What became of all pairs; None before they are decided on."""
    return ledger.restore_ledger(run) if ledger.is_complete(run) else None


def coverage(run: RunFolder, granularity: Granularity) -> tuple[int, int]:
    """Numbers of kept pairs that have a caption, and of all kept pairs."""
    return captions_coverage.coverage(run, granularity, run.units)


def flag_counts(run: RunFolder) -> Mapping[str, captions_flagged.FlagCounts]:
    """Flags by granularity; empty while captions have none."""
    return captions_flagged.counts(run)
