"""Finds pairs of a run by text, outcome, score, seed set, or similarity to an image.

In: a run whose pairs are decided, and a question. Out: pairs, with a few lots in memory
at a time, and of them the columns that the question needs. They come in the order of
the run, or by similarity if the question has an image.
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
from pipeline.report.cards import format_number
from pipeline.report.sampling import PairLocation
from pipeline.selection.lot_decisions import OUTCOMES
from pipeline.selection.search.embeddings import normalize
from pipeline.sources.shards import Lot
from pipeline.storage.prefetch import map_ahead
from pipeline.storage.tables import LotTables
from recipes.safe_text import visible

_LANGUAGE = "language_probability"
SCORES = ("alignment_score", "value", "width", "height", _LANGUAGE)

_TEXT_CHARS = 100
_N_LOTS_AHEAD = 4  # whose texts are in memory, some 100 MB of a million pairs
_N_VECTORS_AHEAD = 1  # lots; 1.5 GB of a million pairs with 768 numbers


@dataclasses.dataclass(frozen=True)
class ScoreRange:
    """Matches pairs with a score from `low` to `high`, both included.

    Pairs without the score do not match.
    """

    name: str
    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> "ScoreRange":
        """Parses `NAME=LOW:HIGH`, where either end may be missing.

        Raises:
          ValueError: on any other text.
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
        if not found.low <= found.high:
            raise ValueError(f"--score {text}: expected LOW at most HIGH")
        return found


@dataclasses.dataclass(frozen=True)
class Question:
    """Conditions that pairs must meet; "" and () are no condition."""

    text: str = ""  # part of the alt text, in any case
    reason: str = ""
    seed: str = ""
    scores: tuple[ScoreRange, ...] = ()

    def __post_init__(self) -> None:
        if self.reason and self.reason not in OUTCOMES:
            expected = ", ".join(map(str, OUTCOMES))
            raise ValueError(f"--reason {self.reason}: expected one of {expected}")


@dataclasses.dataclass(frozen=True)
class FoundPair:
    """A summary of one pair."""

    sample_id: bytes
    outcome: str
    alignment_score: float
    alt_text: str
    error: str = ""  # why it could not be read, and its shard
    similarity: float | None = None  # cosine to the image of the question

    def to_line(self) -> str:
        """The summary as one line of text."""
        parts = [
            self.sample_id.hex(),
            self.outcome,
            format_number(self.alignment_score),
        ]
        if self.similarity is not None:
            parts.insert(1, format_number(self.similarity))
        text = visible(self.error) or visible(self.alt_text, _TEXT_CHARS)
        return "  ".join([*parts, text])


def lines(run: RunFolder, question: Question, like: str, limit: int) -> Iterator[str]:
    """Yields at most `limit` pairs, one per line.

    Args:
      run: A run with decisions.
      question: Conditions on the pairs.
      like: An image file or a sample id to compare with, or "".
      limit: Maximum number of lines.

    Raises:
      ValueError: if there is no such image or seed set, or `limit` is below 1.
    """
    if limit < 1:
        raise ValueError(f"--limit {limit}: expected at least 1")
    _check_seed(run, question.seed)
    if like:
        image = show_pair.read_image(run, like)
        found = iter(find_nearest(run, question, image, limit))
    else:
        found = itertools.islice(find(run, question), limit)
    for one in found:
        yield one.to_line()


def _check_seed(run: RunFolder, seed: str) -> None:
    names = dict.fromkeys(lot.source.name for lot in run.seed_lots)
    if seed and seed not in names:
        expected = f"one of {', '.join(names)}" if names else "a run with seed sets"
        raise ValueError(f"--seed {seed}: expected {expected}")


def find(run: RunFolder, question: Question) -> Iterator[FoundPair]:
    """Yields matching pairs in the order of the run.

    A few lots are read ahead of the one whose pairs are asked for.
    """
    decisions = run.decisions

    def find_in(lot: Lot) -> list[FoundPair]:
        table = _read_facts(run, decisions, lot, question)
        return list(_to_pairs(lot, table, np.flatnonzero(_matches(table, question))))

    found = map_ahead(find_in, run.lots, _N_LOTS_AHEAD, n_threads=_N_LOTS_AHEAD)
    return itertools.chain.from_iterable(found)


def find_nearest(
    run: RunFolder, question: Question, image: bytes, n: int
) -> Sequence[FoundPair]:
    """Finds the `n` matching pairs most similar to an image, most similar first.

    Raises:
      ValueError: if the bytes are no image.
    """
    query = _embed(run, image)
    decisions = run.decisions
    best: list[tuple[float, PairLocation, FoundPair]] = []

    def find_in(number: int) -> list[tuple[float, PairLocation, FoundPair]]:
        lot = run.lots[number]
        table = _read_facts(run, decisions, lot, question)
        similarity = _compare(run, lot, query)
        rows = np.flatnonzero(_matches(table, question) & ~np.isnan(similarity))
        rows = rows[np.argsort(-similarity[rows], kind="stable")[:n]]
        cosines = similarity[rows].tolist()
        places = [PairLocation(number, row) for row in rows.tolist()]
        pairs = [
            dataclasses.replace(pair, similarity=cosine)
            for pair, cosine in zip(_to_pairs(lot, table, rows), cosines, strict=True)
        ]
        return list(zip([-c for c in cosines], places, pairs, strict=True))

    numbers = range(len(run.lots))
    for found in map_ahead(find_in, numbers, _N_VECTORS_AHEAD):
        best = heapq.nsmallest(n, [*best, *found], key=lambda item: item[:2])
    return [pair for _, _, pair in best]


def _compare(run: RunFolder, lot: Lot, query: np.ndarray) -> np.ndarray:
    """Cosines of the images of a lot with the query: [n]; NaN without an embedding."""
    table = run.embeddings(lot.source).read(lot.name, ["embedding"])
    column = table["embedding"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    vectors, has_embedding = normalize(values.reshape(len(column), len(query)))
    return np.where(has_embedding, vectors @ query, np.nan)


def _embed(run: RunFolder, image: bytes) -> np.ndarray:
    from pipeline.models import encoders  # JAX takes seconds

    encoder = encoders.load_encoder(run.config.encoder)
    pixels = encoder.prepare_image(images.decode(image, run.config.limits).rgb)
    vectors, _ = normalize(encoder.encode_images(pixels[None]))
    return vectors[0]


def _read_facts(
    run: RunFolder, decisions: LotTables, lot: Lot, question: Question
) -> pa.Table:
    """Reads one row per pair of a lot: what a line shows and the question asks for."""
    source, asked = lot.source, {score.name for score in question.scores}
    pairs, decided = ["sample_id", "alt_text", "shard", "error"], ["outcome"]
    pairs += [name for name in ("width", "height") if name in asked]
    decided += [name for name in ("value",) if name in asked]
    decided += ["seeds"] if question.seed else []
    table = run.pairs(source).read(lot.name, pairs)
    others = [
        decisions.read(lot.name, decided),
        run.embeddings(source).read(lot.name, ["alignment_score"]),
    ]
    if _LANGUAGE in asked:
        languages = run.languages(source).read(lot.name, ["probability"])
        others.append(languages.rename_columns([_LANGUAGE]))
    for other in others:
        for name in other.column_names:
            table = table.append_column(name, other[name])
    return table


def _matches(table: pa.Table, question: Question) -> np.ndarray:
    """Whether each row meets the conditions: bool [n]."""
    found = np.ones(table.num_rows, dtype=bool)
    if question.text:
        texts = table["alt_text"]
        has_text = pc.match_substring(texts, question.text, ignore_case=True)
        found &= has_text.to_numpy()
    if question.reason:
        found &= pc.equal(table["outcome"], question.reason).to_numpy()
    if question.seed:
        has_seed = [question.seed in seeds for seeds in table["seeds"].to_pylist()]
        found &= np.array(has_seed, dtype=bool)
    for score in question.scores:
        values = table[score.name].to_numpy().astype(np.float64)
        found &= (values >= score.low) & (values <= score.high)  # false for NaN
    return found


def _to_pairs(lot: Lot, table: pa.Table, rows: np.ndarray) -> Iterator[FoundPair]:
    columns = ("sample_id", "outcome", "alignment_score", "alt_text", "shard", "error")
    for row in table.select(columns).take(pa.array(rows)).to_pylist():
        shard, error = row.pop("shard"), row.pop("error")
        yield FoundPair(**row, error=_name_shard(lot, shard, error))


def _name_shard(lot: Lot, shard: int, error: str) -> str:
    """An error with the path of its shard; "" stays."""
    if not error or (uri := lot.shards[shard].uri) in error:
        return error
    return f"{uri}: {error}"
