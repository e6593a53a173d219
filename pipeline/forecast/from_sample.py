"""Estimates of what a run will keep, read and write, from a sample of its shards.

In: a run folder in which some shards of each source are scored and decided. Out:
estimates for all shards. The sample depends on the names of the shards, so that the
next forecast and the run itself find its tables.
"""

import collections
import dataclasses
from collections.abc import Mapping

import numpy as np

from pipeline.captioning import footprint as captioning
from pipeline.config.curation import ImageTextSource
from pipeline.config.selection import KeepFraction, NearSeeds, SelectionConfig
from pipeline.engine import lot_plan
from pipeline.engine.kept_pairs import read_kept_pairs
from pipeline.engine.run_folder import RunFolder
from pipeline.export import footprint as export
from pipeline.forecast import stratified_estimates
from pipeline.forecast.stratified_estimates import Design, Interval
from pipeline.records import KEPT, content_hash
from pipeline.scoring import footprint as scoring
from pipeline.selection import footprint as selection_footprint
from pipeline.selection.lot_decisions import OUTCOMES, outcome_counts
from pipeline.sources.shards import Lot, Shard
from pipeline.storage import files, patterns

N_SHARDS = 8  # of each source: Student's t is then 2.4, not far from 2


def draw_sample(run: RunFolder, n_shards: int) -> RunFolder:
    """Returns the run over a sample of `n_shards` shards of each source.

    A source with fewer shards is sampled whole.

    Raises:
      ValueError: on fewer than two shards, which have no variance.
    """
    if n_shards < 2:
        raise ValueError(
            f"--forecast-shards {n_shards}: expected at least 2, as one shard of a"
            " source has no variance"
        )
    source_to_shards: dict[ImageTextSource, list[Shard]]
    source_to_shards = collections.defaultdict(list)
    for lot in run.lots:
        source_to_shards[lot.source] += lot.shards
    chosen = {
        shard
        for shards in source_to_shards.values()
        for shard in sorted(shards, key=_uri_hash)[:n_shards]
    }
    in_order = (s for shards in source_to_shards.values() for s in shards)
    lots = tuple(lot_plan.single(shard) for shard in in_order if shard in chosen)
    return dataclasses.replace(run, lots=lots, is_sample=True)


def _uri_hash(shard: Shard) -> bytes:
    return content_hash(shard.uri.encode(errors="surrogateescape"))


def make_design(run: RunFolder, sample: RunFolder) -> Design:
    """Returns the design of a sample; sources are its strata."""
    names = [source.name for source in run.config.sources]
    stratum = [names.index(lot.source.name) for lot in sample.lots]
    n_shards = _n_shards(run)
    return Design(np.array(stratum), np.array([n_shards[name] for name in names]))


@dataclasses.dataclass(frozen=True, eq=False)
class SampleFigures:
    """Measurements of n sampled shards, one entry per shard."""

    outcomes: np.ndarray  # int64 [n, outcomes], as OUTCOMES has them
    name_to_images: Mapping[str, np.ndarray]  # granularity to images it captions
    kept_image_bytes: np.ndarray
    score_bytes: np.ndarray
    decision_bytes: np.ndarray
    record_bytes: np.ndarray  # of training shards, with the captions that exist
    name_to_caption_bytes: Mapping[
        str, float
    ]  # per caption, of granularities with captions

    @property
    def n_pairs(self) -> np.ndarray:
        """Pairs of each shard: int64 [n]."""
        return self.outcomes.sum(axis=1)

    @property
    def n_records(self) -> int:
        """Pairs that were made into records to weigh them."""
        return export.count_weighed(self.outcomes[:, OUTCOMES.index(KEPT)])


def _lots_of_sample(run: RunFolder, sample: RunFolder) -> dict[str, Lot]:
    """Name of each lot of a sample, of one shard, to the lot of the run that has it."""
    shard_to_name = {lot.shards[0]: lot.name for lot in sample.lots}
    return {
        shard_to_name[shard]: lot
        for lot in run.lots
        for shard in lot.shards
        if shard in shard_to_name
    }


def measure_sample(run: RunFolder, sample: RunFolder) -> SampleFigures:
    """Reads the tables of a sample, and makes some of its kept pairs into records.

    Captions are those of the lots of the run from which the sample is drawn.

    Raises:
      ValueError: if the sample has no pair.
    """
    decisions = [sample.decisions.read(lot.name, ["outcome"]) for lot in sample.lots]
    outcomes = np.stack(list(map(outcome_counts, decisions)))
    if not outcomes.any():
        raise ValueError(f"{len(outcomes)} shards sampled: expected pairs in them")
    kept = [
        read_kept_pairs(sample.pairs(lot.source), sample.decisions, lot)
        for lot in sample.lots
    ]
    n_kept = np.array(list(map(len, kept)))
    name_to_lot = _lots_of_sample(run, sample)
    return SampleFigures(
        outcomes=outcomes,
        name_to_images={
            granularity.name: np.array(
                [captioning.count_images(granularity, pairs) for pairs in kept]
            )
            for granularity in sample.config.granularities
        },
        kept_image_bytes=np.array([sum(p.n_bytes for p in pairs) for pairs in kept]),
        score_bytes=scoring.table_bytes(sample, sample.lots),
        decision_bytes=selection_footprint.table_bytes(sample, sample.lots),
        record_bytes=n_kept * export.record_bytes(sample, name_to_lot),
        name_to_caption_bytes=captioning.caption_bytes(run, name_to_lot.values()),
    )


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Estimates for all shards; bytes by what is read or written."""

    n_sampled_shards: Mapping[str, tuple[int, int]]  # source to sampled and all
    n_sampled_pairs: int
    n_pairs: Interval
    outcome_to_share: Mapping[str, Interval]
    outcome_to_count: Mapping[str, Interval]
    name_to_images: Mapping[str, Interval]  # granularity to images to caption
    name_to_captions: Mapping[str, Interval]
    bytes_read: Mapping[str, Interval]
    bytes_written: Mapping[str, Interval]
    not_measured: tuple[str, ...]
    global_steps: tuple[str, ...]


def make_forecast(
    run: RunFolder, sample: RunFolder, figures: SampleFigures
) -> Forecast:
    """Estimates the whole run from the measurements of a sample."""
    design, n_pairs = make_design(run, sample), figures.n_pairs
    columns = dict(zip(map(str, OUTCOMES), figures.outcomes.T, strict=True))
    images = {
        n: stratified_estimates.estimate_total(design, v)
        for n, v in figures.name_to_images.items()
    }
    granularities = run.config.granularities
    captions = {g.name: images[g.name] * g.decoding.n_samples for g in granularities}
    return Forecast(
        n_sampled_shards=_count_shards(run, sample),
        n_sampled_pairs=int(n_pairs.sum()),
        n_pairs=stratified_estimates.estimate_total(design, n_pairs),
        outcome_to_share={
            name: stratified_estimates.estimate_share(design, column, n_pairs)
            for name, column in columns.items()
        },
        outcome_to_count={
            name: stratified_estimates.estimate_count(design, column, n_pairs)
            for name, column in columns.items()
        },
        name_to_images=images,
        name_to_captions=captions,
        bytes_read=_bytes_read(run, design, figures),
        bytes_written=_bytes_written(design, figures, captions),
        not_measured=tuple(
            f"captions/{g.name}: no caption of the sampled lots yet"
            for g in granularities
            if g.name not in figures.name_to_caption_bytes
        ),
        global_steps=describe_global_steps(run.config.selection),
    )


def _count_shards(run: RunFolder, sample: RunFolder) -> dict[str, tuple[int, int]]:
    n_sampled = _n_shards(sample)
    return {name: (n_sampled[name], n) for name, n in _n_shards(run).items()}


def _n_shards(run: RunFolder) -> collections.Counter[str]:
    """Source name to its number of shards."""
    counts: collections.Counter[str] = collections.Counter()
    for lot in run.lots:
        counts[lot.source.name] += len(lot.shards)
    return counts


def _bytes_read(
    run: RunFolder, design: Design, figures: SampleFigures
) -> dict[str, Interval]:
    """Bytes of the sources, and of the kept images once per captioner."""
    config = run.config
    role_to_sources = {
        "sources": config.sources,
        "evaluation sets": config.evaluation_sets,
        "seed sets": config.seed_sets,
    }
    found = {}
    for role, image_sets in role_to_sources.items():
        texts = (text for one in image_sets for text in patterns.as_tuple(one.pattern))
        size = float(sum(sum(files.sizes(text).values()) for text in texts))
        found[f"score: {role}"] = Interval(size, size, size)
    kept_images = stratified_estimates.estimate_total(design, figures.kept_image_bytes)
    found["caption: kept images"] = kept_images * captioning.n_image_reads(config)
    found["export: kept images"] = kept_images
    return found


def _bytes_written(
    design: Design, figures: SampleFigures, captions: Mapping[str, Interval]
) -> dict[str, Interval]:
    written = {
        "scores": stratified_estimates.estimate_total(design, figures.score_bytes),
        "decisions": stratified_estimates.estimate_total(
            design, figures.decision_bytes
        ),
    }
    for name, n_bytes in figures.name_to_caption_bytes.items():
        written[f"captions/{name}"] = captions[name] * n_bytes
    written["tfrecords"] = stratified_estimates.estimate_total(
        design, figures.record_bytes
    )
    return written


def describe_global_steps(selection: SelectionConfig) -> tuple[str, ...]:
    """Says what steps of `select` that need all shards cannot know from a sample."""
    found = []
    if isinstance(selection.alignment, KeepFraction):
        found.append(
            "low_alignment: the cut is the quantile of the sample, not of all shards"
        )
    if selection.drop_exact_duplicates:
        found.append(
            "exact_duplicate: a lower bound, as only duplicates within the sample are"
            " seen; what later steps do and what is kept are upper bounds for it"
        )
    if selection.pool_duplicates:
        found.append(
            "near_duplicate: a lower bound, as only images of the sample are compared;"
            " the shuffle of their embeddings is not in the scale model"
        )
    if selection.evaluation_duplicates and (
        selection.evaluation_duplicates.whole_component
    ):
        found.append(
            "near_evaluation: a lower bound, as components are those of the sample;"
            " the shuffle of their embeddings is not in the scale model"
        )
    if not isinstance(selection.retrieval, (NearSeeds, type(None))):
        found.append(
            "far_from_seeds: a lower bound, as fewer images compete in the sample to"
            " be among the nearest of a seed"
        )
    if selection.balance:
        found.append(
            "balance: a lower bound, as the groups of the sample are smaller than those"
            " of all shards"
        )
    return tuple(found)
