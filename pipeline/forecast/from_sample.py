"""What a run will keep, read and write, from a sample of its shards.

In: a run folder in which some shards of each source are scored and decided on. Out:
estimates for all shards. The sample hangs on the names of the shards, so that the next
forecast and the run itself find its tables.
"""

import collections
import dataclasses
import itertools
import os
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import prompts
from pipeline.config.captions import Granularity
from pipeline.config.selection import KeepFraction, NearSeeds, SelectionConfig
from pipeline.engine.caption_tables import CaptionTables
from pipeline.engine.run_folder import RunFolder
from pipeline.export import tfrecords
from pipeline.export.samples import SampleTables, kept_samples, with_image
from pipeline.forecast import stratified_estimates
from pipeline.forecast.stratified_estimates import Design, Interval
from pipeline.records import KEPT, Pair, Sample, content_hash
from pipeline.selection.unit_decisions import OUTCOMES, outcome_counts
from pipeline.sources import shards
from pipeline.sources.shards import Unit
from pipeline.storage import files, patterns
from pipeline.storage.tables import UnitTables, from_table

N_SHARDS = 8  # of each source: Student's t is then 2.4, not far from 2
_N_EXPORTED = 256  # kept pairs of a shard that are made into records, to weigh them


def sampled(run: RunFolder, n_shards: int) -> RunFolder:
    """The run over `n_shards` shards of each source, all where there are no more.

    Raises:
      ValueError: on fewer than two, which have no variance.
    """
    if n_shards < 2:
        raise ValueError(
            f"--forecast-shards {n_shards}: expected at least 2, as one shard of a"
            " source has no variance"
        )
    source_to_units = collections.defaultdict(list)
    for unit in run.units:
        source_to_units[unit.source].append(unit)
    chosen = {
        unit
        for units in source_to_units.values()
        for unit in sorted(units, key=lambda u: content_hash(u.shard_name.encode()))[
            :n_shards
        ]
    }
    units = tuple(unit for unit in run.units if unit in chosen)
    return dataclasses.replace(run, units=units)


def design_of(run: RunFolder, sample: RunFolder) -> Design:
    """Sources are strata."""
    names = [source.name for source in run.config.sources]
    stratum = [names.index(unit.source.name) for unit in sample.units]
    n_shards = collections.Counter(unit.source.name for unit in run.units)
    return Design(np.array(stratum), np.array([n_shards[name] for name in names]))


@dataclasses.dataclass(frozen=True, eq=False)
class SampleFigures:
    """What was found in n sampled shards, one entry a shard."""

    outcomes: np.ndarray  # int64 [n, outcomes], as OUTCOMES has them
    name_to_images: Mapping[str, np.ndarray]  # granularity to images it captions
    kept_image_bytes: np.ndarray
    score_bytes: np.ndarray
    decision_bytes: np.ndarray
    record_bytes: np.ndarray  # of training shards, with the captions that are there
    name_to_caption_bytes: Mapping[str, float]  # a caption; without unknown ones

    @property
    def n_pairs(self) -> np.ndarray:
        return self.outcomes.sum(axis=1)


def measure(sample: RunFolder) -> SampleFigures:
    """Reads the tables of a sample, and makes some of its kept pairs into records.

    Raises:
      ValueError: if there is no pair in it.
    """
    decisions = [sample.decisions.read(unit.name, ["outcome"]) for unit in sample.units]
    outcomes = np.stack(list(map(outcome_counts, decisions)))
    if not outcomes.any():
        raise ValueError(f"{len(outcomes)} shards sampled: expected pairs in them")
    kept = [
        _pairs(sample, unit, table["outcome"])
        for unit, table in zip(sample.units, decisions, strict=True)
    ]
    n_kept = np.array(list(map(len, kept)))
    return SampleFigures(
        outcomes=outcomes,
        name_to_images={
            granularity.name: np.array([n_images(granularity, pairs) for pairs in kept])
            for granularity in sample.config.granularities
        },
        kept_image_bytes=np.array([sum(p.n_bytes for p in pairs) for pairs in kept]),
        score_bytes=_score_bytes(sample),
        decision_bytes=_bytes_of(sample.decisions, sample.units),
        record_bytes=n_kept * _record_bytes(sample),
        name_to_caption_bytes=_caption_bytes(sample),
    )


def _pairs(sample: RunFolder, unit: Unit, outcomes: object) -> list[Pair]:
    table = sample.pairs(unit.source).read(unit.name)
    return from_table(table.filter(pc.equal(outcomes, KEPT)), Pair)


def n_images(granularity: Granularity, kept: Sequence[Pair]) -> int:
    """Images of a shard that a granularity captions; of equal ones with one prompt,
    one."""
    if granularity.captioner == "imported":
        return 0
    nothing: Mapping[str, str] = collections.defaultdict(str)
    template = granularity.prompt
    return len(
        {(p.image_hash, prompts.filled(template, p.alt_text, nothing)) for p in kept}
    )


def _bytes_of(tables: UnitTables, units: Sequence[Unit]) -> np.ndarray:
    path_to_size = files.listed(tables.folder, suffix=".parquet")
    return np.array([path_to_size[tables.path(unit.name)] for unit in units])


def _score_bytes(sample: RunFolder) -> np.ndarray:
    n_bytes = np.zeros(len(sample.units), np.int64)
    for measure_of in (sample.pairs, sample.languages, sample.embeddings):
        for source, group in itertools.groupby(
            enumerate(sample.units), lambda item: item[1].source
        ):
            rows, units = zip(*group, strict=True)
            n_bytes[list(rows)] += _bytes_of(measure_of(source), units)
    return n_bytes


def _caption_bytes(sample: RunFolder) -> dict[str, float]:
    """Granularity to bytes of a caption, for those of which the sample has some."""
    found = {}
    for granularity in sample.config.granularities:
        captions = CaptionTables.open(sample.captions(granularity))
        names = [name for unit in sample.units for name in captions.names(unit)]
        path_to_size = files.listed(captions.tables.folder, suffix=".parquet")
        n_bytes = sum(path_to_size[captions.tables.path(name)] for name in names)
        rows = sum(captions.tables.read(n, ["sample_index"]).num_rows for n in names)
        if rows:
            found[granularity.name] = n_bytes / rows
    return found


def _record_bytes(sample: RunFolder) -> np.ndarray:
    """Bytes of a kept pair in the training shards, of each shard of the sample."""
    tables = SampleTables.of(sample)
    captions = tables.open_captions()
    found = []
    for unit in sample.units:
        kept = kept_samples(unit, tables.decided_pairs(unit), captions)
        by_chance = sorted(range(len(kept)), key=lambda row: kept[row][0].sample_id)
        some = [kept[row] for row in sorted(by_chance[:_N_EXPORTED])]
        found.append(_written(sample, unit, some) / max(len(some), 1))
    return np.array(found)


def _written(sample: RunFolder, unit: Unit, kept: Sequence[tuple[Pair, Sample]]) -> int:
    """Bytes of the records of some pairs and of their index."""
    encoded = shards.read_images(unit, [pair for pair, _ in kept])
    records = (
        with_image(one, image, sample.config.export, sample.config.limits)
        for (_, one), image in zip(kept, encoded, strict=True)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "records")
        index = tfrecords.write_local(path, records)
        return os.path.getsize(path) + index.nbytes


def n_records(figures: SampleFigures) -> int:
    """Pairs that `measure` made into records."""
    n_kept = figures.outcomes[:, OUTCOMES.index(KEPT)]
    return int(np.minimum(n_kept, _N_EXPORTED).sum())


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


def forecast(run: RunFolder, sample: RunFolder, figures: SampleFigures) -> Forecast:
    """Estimates of the whole run from the figures of a sample."""
    design, n_pairs = design_of(run, sample), figures.n_pairs
    columns = dict(zip(map(str, OUTCOMES), figures.outcomes.T, strict=True))
    images = {
        n: stratified_estimates.total(design, v)
        for n, v in figures.name_to_images.items()
    }
    granularities = run.config.granularities
    captions = {g.name: images[g.name] * g.decoding.n_samples for g in granularities}
    return Forecast(
        n_sampled_shards=_n_shards(run, sample),
        n_sampled_pairs=int(n_pairs.sum()),
        n_pairs=stratified_estimates.total(design, n_pairs),
        outcome_to_share={
            name: stratified_estimates.share(design, column, n_pairs)
            for name, column in columns.items()
        },
        outcome_to_count={
            name: stratified_estimates.count(design, column, n_pairs)
            for name, column in columns.items()
        },
        name_to_images=images,
        name_to_captions=captions,
        bytes_read=_bytes_read(run, design, figures),
        bytes_written=_bytes_written(design, figures, captions),
        not_measured=tuple(
            f"captions/{g.name}: no caption in the sample yet"
            for g in granularities
            if g.name not in figures.name_to_caption_bytes
        ),
        global_steps=global_steps(run.config.selection),
    )


def _n_shards(run: RunFolder, sample: RunFolder) -> dict[str, tuple[int, int]]:
    n_sampled = collections.Counter(unit.source.name for unit in sample.units)
    n_shards = collections.Counter(unit.source.name for unit in run.units)
    return {name: (n_sampled[name], n) for name, n in n_shards.items()}


def _bytes_read(
    run: RunFolder, design: Design, figures: SampleFigures
) -> dict[str, Interval]:
    """The sources as they lie there; then the kept images, once a captioner."""
    config = run.config
    role_to_sources = {
        "sources": config.sources,
        "evaluation sets": config.evaluation_sets,
        "seed sets": config.seed_sets,
    }
    found = {}
    for role, image_sets in role_to_sources.items():
        texts = (text for one in image_sets for text in patterns.texts(one.pattern))
        size = float(sum(sum(files.sizes(text).values()) for text in texts))
        found[f"score: {role}"] = Interval(size, size, size)
    kept_images = stratified_estimates.total(design, figures.kept_image_bytes)
    captioners = {
        (g.checkpoint, g.revision)
        for g in config.granularities
        if g.captioner != "imported"
    }
    found["caption: kept images"] = kept_images * len(captioners)
    found["export: kept images"] = kept_images
    return found


def _bytes_written(
    design: Design, figures: SampleFigures, captions: Mapping[str, Interval]
) -> dict[str, Interval]:
    written = {
        "scores": stratified_estimates.total(design, figures.score_bytes),
        "decisions": stratified_estimates.total(design, figures.decision_bytes),
    }
    for name, n_bytes in figures.name_to_caption_bytes.items():
        written[f"captions/{name}"] = captions[name] * n_bytes
    written["tfrecords"] = stratified_estimates.total(design, figures.record_bytes)
    return written


def global_steps(selection: SelectionConfig) -> tuple[str, ...]:
    """What a step of `select` that looks at all shards cannot know from a sample."""
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


def embedding_dim(sample: RunFolder) -> int:
    """Numbers of an image embedding."""
    unit = sample.units[0]
    with files.open_for_reading(sample.embeddings(unit.source).path(unit.name)) as file:
        return pq.read_schema(file).field("embedding").type.list_size
