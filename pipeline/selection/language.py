"""The language filter: keeps alt text in the languages that a recipe wants.

In: decisions on pairs and the detected language of their alt text. Out: the decisions,
with the pairs dropped whose text is in another language. The transform maps
PCollection[LotDecisions] to PCollection[LotDecisions].
"""

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.selection import KeepLanguages, ShortText
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection.alignment import read_scores
from pipeline.selection.lot_decisions import LotDecisions, read_rows, to_objects
from pipeline.selection.rules import count_words


class FilterLanguage(beam.PTransform):
    """Drops alt text that is not in one of the languages to keep."""

    def __init__(self, run: RunFolder, languages: KeepLanguages | None) -> None:
        super().__init__()
        self._run = run
        self._languages = languages

    def expand(self, decisions: beam.PCollection[LotDecisions]) -> beam.PCollection:
        if self._languages is None:
            return decisions
        return decisions | "Compare languages" >> beam.Map(
            filter_language, self._run, self._languages
        )


def filter_language(
    decisions: LotDecisions, run: RunFolder, languages: KeepLanguages
) -> LotDecisions:
    """Drops pairs by the detected language of their alt text.

    The detail of a decision is the language, its value the probability of the language.
    Short texts are decided on by `languages.short_text` alone, if it is set.
    """
    rows = decisions.droppable_rows
    if languages.short_text is not None:
        is_short = _is_short(decisions, run, rows, languages.short_text.max_words)
        decisions = _filter_short_text(
            decisions, run, rows[is_short], languages.short_text
        )
        rows = rows[~is_short]
    table = read_rows(run.languages(decisions.lot.source), decisions, rows)
    probabilities = table["probability"].to_numpy()
    is_wanted = pc.is_in(table["code"], pa.array(languages.languages)).to_numpy()
    thresholds = np.where(
        is_wanted, languages.min_probability, languages.min_foreign_probability
    )
    fails = is_wanted ^ (probabilities >= thresholds)
    return decisions.drop(
        rows[fails],
        DropReason.LANGUAGE,
        value=probabilities[fails],
        threshold=thresholds[fails],
        detail=to_objects(table["code"])[fails],
    )


def _is_short(
    decisions: LotDecisions, run: RunFolder, rows: np.ndarray, max_words: int
) -> np.ndarray:
    tables = run.pairs(decisions.lot.source)
    texts = read_rows(tables, decisions, rows, "alt_text")["alt_text"].to_pylist()
    return np.array([count_words(text) <= max_words for text in texts], dtype=bool)


def _filter_short_text(
    decisions: LotDecisions, run: RunFolder, rows: np.ndarray, short_text: ShortText
) -> LotDecisions:
    if short_text.policy == "keep":
        return decisions
    if short_text.policy == "drop":
        return decisions.drop(rows, DropReason.LANGUAGE, detail="short text")
    scores = read_scores(decisions, run, rows)
    fails = ~(scores >= short_text.min_score)
    return decisions.drop(
        rows[fails],
        DropReason.LANGUAGE,
        value=scores[fails],
        threshold=short_text.min_score,
        detail="short text",
    )
