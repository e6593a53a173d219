"""The method: score, select, caption, export.

Each stage is one Beam pipeline over the lots of a run. It reads the tables of earlier
stages, writes those of its own that are missing, and returns its counters. A stage that
has nothing to do returns none.
"""

from collections.abc import Callable, Mapping, Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.captioning import allowances, failed_captions, flag_counts, flag_stage
from pipeline.captioning import stage as captioning
from pipeline.captioning.coverage import find_incomplete
from pipeline.config.captions import Granularity
from pipeline.engine import error_tables, scored_shards
from pipeline.engine.run_folder import RunFolder
from pipeline.engine.stage_runner import Counters, run_stage
from pipeline.engine.summaries import Summaries
from pipeline.export import completeness, publishing
from pipeline.export import stage as export
from pipeline.export.shard_formats import NAME_TO_FORMAT, TFRECORD, ShardFormat
from pipeline.scoring import missing_tables
from pipeline.scoring import stage as scoring
from pipeline.scoring.encoder_handler import EncoderHandler
from pipeline.selection import ledger, reference_accounts
from pipeline.selection import stage as selection


def score(run: RunFolder, options: PipelineOptions) -> Counters:
    """Measures every pair: its image and text, its language, its embedding."""
    lots = missing_tables.incomplete_lots(run)
    if not lots:
        scoring.remove_outdated(run)
        return {}
    handler = EncoderHandler(run.config.encoder)
    stage = scoring.Score(run, handler)
    counters = run_stage(run, lots, scoring.STAGE, stage, options)
    scoring.expect_scored(run)
    scoring.remove_outdated(run)
    return counters


def select(run: RunFolder, options: PipelineOptions) -> Counters:
    """Decides which pairs to keep, from scores and thresholds alone."""
    if ledger.is_complete(run):
        reference_accounts.expect_enough(run, ledger.restore_ledger(run))
        return {}
    fault = "without scores of the present contents"
    scored_shards.expect_scored(run, fault, "run `score` first")
    stage = selection.Select(run)
    counters = run_stage(run, run.lots, selection.STAGE, stage, options)
    selection.clean_up(run)
    return counters


def select_sample(sample: RunFolder, options: PipelineOptions) -> Counters:
    """Selects from a sample of a run, with a ledger of its own."""
    if ledger.is_complete(sample):
        return {}
    transform = selection.Select(sample, is_sample=True)
    counters = run_stage(sample, sample.lots, selection.STAGE, transform, options)
    selection.clean_up(sample)
    return counters


def caption(
    run: RunFolder,
    options: PipelineOptions,
    granularities: Sequence[Granularity] | None = None,
) -> Counters:
    """Captions the kept images that have no caption yet, and flags doubtful ones.

    Raises:
      ValueError: if too many captions failed, or the missing captions of a granularity
        may cost more than its bound.
    """
    wanted = run.config.granularities if granularities is None else granularities
    if not wanted:
        return {}
    scored_shards.expect_decided(run)
    if not find_incomplete(run, wanted):
        failed_captions.check(run, wanted)
        return flag(run, options)
    allowed = allowances.allow(run, wanted)
    for granularity in wanted:
        captioning.describe(run, granularity)
    transform = captioning.Caption(run, wanted, name_to_allowance=allowed)
    captioned = run_stage(run, run.lots, captioning.STAGE, transform, options)
    failed_captions.check(run, wanted)
    return {**captioned, **flag(run, options)}


def retry_failed(run: RunFolder, granularities: Sequence[Granularity]) -> int:
    """Forgets what failed in `caption` and `export`, so that they try it again.

    Returns how many captions and records that is.
    """
    n_failed = failed_captions.forget(run, granularities)
    for shard_format in NAME_TO_FORMAT.values():
        failed = error_tables.tables(run.root, shard_format.errors)
        summaries = Summaries.read(failed.folder)
        n_failed += sum(summary["rows"] for summary in summaries.values())
        failed.delete(summaries)
    return n_failed


def flag(run: RunFolder, options: PipelineOptions) -> Counters:
    """Flags doubtful captions; drops none."""
    if not run.config.granularities or flag_counts.is_complete(run):
        return {}
    return run_stage(run, run.lots, flag_stage.STAGE, flag_stage.Flag(run), options)


def export_shards(
    run: RunFolder, options: PipelineOptions, shard_format: ShardFormat = TFRECORD
) -> Counters:
    """Writes the training shards of the kept images with their captions.

    Raises:
      ValueError: if more images are gone than the recipe allows.
    """
    scored_shards.expect_decided(run)
    flagged = flag(run, options)
    if completeness.is_complete(run, shard_format):
        return flagged
    exported: Counters = {}
    if stale := completeness.stale_lots(run, shard_format):
        transform = export.Export(run, shard_format)
        exported = run_stage(run, stale, export.STAGE, transform, options)
    return {**flagged, **exported, **publishing.publish(run, shard_format)}


STAGES: Mapping[str, Callable[[RunFolder, PipelineOptions], Counters]] = {
    "score": score,
    "select": select,
    "caption": caption,
    "export": export_shards,
}
