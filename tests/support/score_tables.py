"""Literal score tables for the tests of `select`: what `score` would have written."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline import records
from pipeline.config.curation import CurationConfig, EncoderConfig, ImageTextSource
from pipeline.config.selection import SelectionConfig
from pipeline.engine.lot_plan import single
from pipeline.engine.run_folder import RunFolder
from pipeline.selection import stage as selection
from pipeline.selection.lot_decisions import LotDecisions, open_lot
from pipeline.selection.search import index_builder, reference_sets
from pipeline.selection.search.reference_sets import ReferenceSet
from pipeline.sources.shards import Lot, Shard
from pipeline.storage import files
from pipeline.storage.tables import from_table, to_table


@dataclasses.dataclass(frozen=True)
class Row:
    """One pair and its scores."""

    alt_text: str = "a red circle on a field"
    image: str = ""  # equal names, equal image bytes; "" is an image of its own
    embedding: tuple[float, ...] = (1.0, 0.0)
    perceptual: tuple[float, ...] = (1.0, 0.0)  # written if the recipe asks for it
    score: float = 0.5
    code: str = "en"
    probability: float = 1.0
    size: tuple[int, int] = (64, 64)
    key: str = ""  # "" is the row number
    error: str = ""
    url: str = ""
    robots: str = ""


Shards = dict[str, Sequence[Row]]  # path to rows


def make_run(
    root: str,
    config: SelectionConfig,
    shards: Shards,
    *,
    evaluation: Shards | None = None,
    seeds: Shards | None = None,
    keep_all: Sequence[str] = (),
) -> RunFolder:
    """A run folder with score tables.

    The shard `web/1` is of the source or set `web`.
    """
    tables = [shards, evaluation or {}, seeds or {}]
    lots = [_lots(role, keep_all) for role in tables]
    names = [sorted({lot.source for lot in role}, key=repr) for role in lots]
    curation = CurationConfig(
        encoder=EncoderConfig("encoder"),
        selection=config,
        sources=tuple(names[0]),
        evaluation_sets=tuple(names[1]),
        seed_sets=tuple(names[2]),
    )
    run = RunFolder(root, curation, *lots, checkpoint_to_digest={"encoder": "digest"})
    for role, uri_to_rows in zip(lots, tables, strict=True):
        for lot in role:
            write_scores(run, lot, uri_to_rows[lot.shards[0].uri])
    return run


def write_scores(run: RunFolder, lot: Lot, rows: Sequence[Row]) -> None:
    """Writes the three tables of one shard."""
    pairs = [_pair(lot, i, row) for i, row in enumerate(rows)]
    run.pairs(lot.source).write(lot.name, to_table(pairs, records.Pair))
    languages = [records.Language(row.code, row.probability) for row in rows]
    table = to_table(languages, records.Language)
    run.languages(lot.source).write(lot.name, table)
    scores = pa.array([row.score for row in rows], pa.float32())
    embeddings = _vector_column([row.embedding for row in rows])
    table = pa.table({"embedding": embeddings, "alignment_score": scores})
    run.embeddings(lot.source).write(lot.name, table)
    for descriptor in run.config.selection.descriptors:
        described = _vector_column([row.perceptual for row in rows])
        tables = run.descriptions(lot.source, descriptor)
        tables.write(lot.name, pa.table({"embedding": described}))


def _vector_column(vectors: Sequence[tuple[float, ...]]) -> pa.FixedSizeListArray:
    flat = pa.array(np.array(vectors, np.float16).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, len(vectors[0]) if vectors else 2)


def sample_id(row: Row, image: str) -> bytes:
    """The identity of a row, whose image has that name."""
    return records.sample_id(image.encode(), row.alt_text.encode())


def select(run: RunFolder, *, lots: Sequence[Lot] | None = None) -> dict:
    """Runs `select` and returns the ledger."""
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        created = pipeline | beam.Create(run.lots if lots is None else lots)
        _ = created | selection.Select(run)
    return json.loads(files.read(files.join(run.root, "ledger.json")))


def outcomes(run: RunFolder) -> dict[str, list[str]]:
    """Path of the shard to the outcomes of its pairs, after `select`."""
    select(run)
    return {
        uri: [decision.outcome for decision in decisions]
        for uri, decisions in read_decisions(run).items()
    }


def after_step(
    run: RunFolder, step: Callable[[LotDecisions], LotDecisions]
) -> list[records.Decision]:
    """Decisions on the first lot after one step, without a pipeline."""
    lot = run.lots[0]
    sample_ids = run.pairs(lot.source).read(lot.name)["sample_id"]
    table = step(open_lot(lot, run)).to_table(sample_ids)
    return from_table(table, records.Decision)


def after_search(
    run: RunFolder,
    lots: Sequence[Lot],
    decide: Callable[..., LotDecisions],
    bound: float,
) -> list[records.Decision]:
    """`after_step` for a step that searches the sets that `lots` belong to."""
    sets = tuple(map(ReferenceSet.open, index_builder.build("sets", run, lots)))

    def step(decisions: LotDecisions) -> LotDecisions:
        search = functools.partial(reference_sets.find_nearest, sets, run, decisions)
        return decide(decisions, search, bound)

    return after_step(run, step)


def read_decisions(run: RunFolder) -> dict[str, list[records.Decision]]:
    """Path of the shard to its decisions."""
    tables = run.decisions
    return {
        lot.shards[0].uri: from_table(tables.read(lot.name), records.Decision)
        for lot in run.lots
    }


def _lots(shards: Shards, keep_all: Sequence[str]) -> tuple[Lot, ...]:
    names = [uri.split("/")[0] for uri in shards]
    return tuple(
        single(
            Shard(ImageTextSource(name, f"{name}/*", keep_all=name in keep_all), uri)
        )
        for name, uri in zip(names, shards, strict=True)
    )


def _pair(lot: Lot, i: int, row: Row) -> records.Pair:
    image = row.image or f"{lot.shards[0].uri} {i}"
    is_readable = not row.error
    return records.Pair(
        sample_id=sample_id(row, image),
        key=row.key or str(i),
        url=row.url,
        alt_text=row.alt_text if is_readable else "",
        image_hash=records.content_hash(image.encode()),
        image_format="jpeg" if is_readable else "",
        width=row.size[0] if is_readable else 0,
        height=row.size[1] if is_readable else 0,
        n_bytes=100,
        offset=i,
        error=row.error,
        robots=row.robots,
    )
