"""Finds pairs of a run: by text, outcome, score, seed set, or likeness to an image.

In: a run whose pairs are decided on, and what is asked for. Out: pairs, one shard in
memory at a time. Finds of a question without an image come in the order of the run, of
one with an image by likeness.
"""

import dataclasses
import heapq
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine.run_folder import RunFolder
from pipeline.images import decoder as images
from pipeline.report import show_pair
from pipeline.report.cards import number
from pipeline.report.sampling import Place
from pipeline.selection.search.reference_sets import normalized
from pipeline.selection.unit_decisions import OUTCOMES
from pipeline.sources.shards import Unit
from pipeline.storage.tables import UnitTables
from recipes.safe_text import visible

SCORES = ("alignment_score", "value", "width", "height", "language_probability")

_TEXT_CHARS = 100


@dataclasses.dataclass(frozen=True)
class ScoreRange:
    """Pairs whose score is at least `low` and at most `high`; none without it."""

    name: str
    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> "ScoreRange":
        """Reads `NAME=LOW:HIGH`, where an end may be missing.

        Raises:
          ValueError: if it says something else.
        """
        name, _, ends = text.partition("=")
        low, colon, high = ends.partition(":")
        try:
            found = cls(name, float(low or "-inf"), float(high or "inf"))
        except ValueError:
            colon = ""
        if not colon or name not in SCORES:
            expected = f"NAME=LOW:HIGH with a name of {', '.join(SCORES)}"
            raise ValueError(f"--score {text}: expected {expected}")
        return found


@dataclasses.dataclass(frozen=True)
class Question:
    """What the pairs must be; "" and () ask for nothing."""

    text: str = ""  # in the alt text, whatever its case
    reason: str = ""
    seed: str = ""
    scores: tuple[ScoreRange, ...] = ()

    def __post_init__(self) -> None:
        if self.reason and self.reason not in OUTCOMES:
            expected = ", ".join(map(str, OUTCOMES))
            raise ValueError(f"--reason {self.reason}: expected one of {expected}")


@dataclasses.dataclass(frozen=True)
class Found:
    """One pair, in short."""

    sample_id: bytes
    outcome: str
    alignment_score: float
    alt_text: str
    similarity: float | None = None  # to the image that was asked for

    def line(self) -> str:
        parts = [self.sample_id.hex(), self.outcome, number(self.alignment_score)]
        if self.similarity is not None:
            parts.insert(1, number(self.similarity))
        return "  ".join([*parts, visible(self.alt_text, _TEXT_CHARS)])


def lines(run: RunFolder, question: Question, like: str, limit: int) -> Iterator[str]:
    """At most `limit` pairs, one a line; `like` is a file or a sample id, or "".

    Raises:
      ValueError: if there is no such image.
    """
    if like:
        found = iter(nearest(run, question, show_pair.read_image(run, like), limit))
    else:
        found = itertools.islice(find(run, question), limit)
    for one in found:
        yield one.line()


def find(run: RunFolder, question: Question) -> Iterator[Found]:
    """Pairs in the order of the run."""
    decisions = run.decisions
    for unit in run.units:
        table = _facts(run, decisions, unit)
        yield from _rows(table, np.flatnonzero(_matches(table, question)))


def nearest(
    run: RunFolder, question: Question, image: bytes, n: int
) -> Sequence[Found]:
    """The `n` pairs whose images are nearest to an image, nearest first.

    Raises:
      ValueError: if it is no image.
    """
    query = _embedding(run, image)
    decisions = run.decisions
    best: list[tuple[float, Place, Found]] = []
    for index, unit in enumerate(run.units):
        table = _facts(run, decisions, unit)
        similarity = _similarity(run, unit, query)
        rows = np.flatnonzero(_matches(table, question) & ~np.isnan(similarity))
        rows = rows[np.argsort(-similarity[rows], kind="stable")[:n]]
        for row, found in zip(rows.tolist(), _rows(table, rows), strict=True):
            cosine = float(similarity[row])
            known = dataclasses.replace(found, similarity=cosine)
            best.append((-cosine, Place(index, row), known))
        best = heapq.nsmallest(n, best, key=lambda item: item[:2])
    return [found for _, _, found in best]


def _similarity(run: RunFolder, unit: Unit, query: np.ndarray) -> np.ndarray:
    """Cosines of the images of a unit with the query; NaN without an embedding."""
    table = run.embeddings(unit.source).read(unit.name, ["embedding"])
    column = table["embedding"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    vectors, has_embedding = normalized(values.reshape(len(column), len(query)))
    return np.where(has_embedding, vectors @ query, np.nan)


def _embedding(run: RunFolder, image: bytes) -> np.ndarray:
    from pipeline.models import encoders  # JAX takes seconds

    encoder = encoders.load_encoder(run.config.encoder)
    pixels = encoder.prepare_image(images.decode(image, run.config.limits).rgb)
    vectors, _ = normalized(encoder.encode_images(pixels[None]))
    return vectors[0]


def _facts(run: RunFolder, tables: UnitTables, unit: Unit) -> pa.Table:
    """One row a pair of a unit, with everything that can be asked for."""
    pairs = ["sample_id", "alt_text", "width", "height"]
    fields = ["outcome", "value", "seeds"]
    table = run.pairs(unit.source).read(unit.name, pairs)
    decided = tables.read(unit.name, fields)
    scores = run.embeddings(unit.source).read(unit.name, ["alignment_score"])
    languages = run.languages(unit.source).read(unit.name, ["probability"])
    columns = {name: decided[name] for name in fields}
    columns["alignment_score"] = scores["alignment_score"]
    columns["language_probability"] = languages["probability"]
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def _matches(table: pa.Table, question: Question) -> np.ndarray:
    """Whether each row is what is asked for."""
    found = np.ones(table.num_rows, dtype=bool)
    if question.text:
        texts = table["alt_text"]
        says = pc.match_substring(texts, question.text, ignore_case=True)
        found &= says.to_numpy()
    if question.reason:
        found &= pc.equal(table["outcome"], question.reason).to_numpy()
    if question.seed:
        wanted = [question.seed in seeds for seeds in table["seeds"].to_pylist()]
        found &= np.array(wanted, dtype=bool)
    for score in question.scores:
        values = table[score.name].to_numpy().astype(np.float64)
        found &= (values >= score.low) & (values <= score.high)  # no NaN is
    return found


def _rows(table: pa.Table, rows: np.ndarray) -> Iterator[Found]:
    columns = ("sample_id", "outcome", "alignment_score", "alt_text")
    for row in table.select(columns).take(pa.array(rows)).to_pylist():
        yield Found(**row)
