"""The report on synthetic captions: examples, lengths, words and flags.

In: a run with some or all of its captions. Out: counts over all captions in the table
of flags, the captions of a few pairs, and the words of some thousand captions.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.captioning import flag_counts
from pipeline.captioning.flags import words
from pipeline.engine.caption_tables import CaptionTables, captions_of
from pipeline.engine.run_folder import RunFolder
from pipeline.engine.summaries import Summaries
from pipeline.records import FlaggedCaption, Pair
from pipeline.report.pair_facts import PairFacts
from pipeline.sources.shards import Lot
from pipeline.storage.tables import LotTables, from_table

MAX_LENGTH = 60  # words; the last bin includes longer captions
_N_READ = 5000  # captions of a granularity whose words are counted
_N_WORDS_SHOWN = 25

ALT_TEXT = "alt text"


@dataclasses.dataclass(frozen=True)
class CaptionWithFlags:
    """One caption of a pair and its flags."""

    granularity: str
    text: str
    flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Statistics of the words of some texts."""

    n_texts: int
    n_words: int
    n_distinct: int
    most_frequent: tuple[tuple[str, int], ...]

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "Vocabulary":
        """Counts the words of texts; case and punctuation do not matter."""
        counts: collections.Counter[str] = collections.Counter()
        n_texts = 0
        for text in texts:
            counts.update(words(text))
            n_texts += 1
        first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        most = tuple(first[:_N_WORDS_SHOWN])
        return cls(n_texts, counts.total(), len(counts), most)


@dataclasses.dataclass
class CaptionLengths:
    """Lengths and flags of the captions of one granularity."""

    counts: np.ndarray  # int64 [MAX_LENGTH + 1], by number of words
    flags: collections.Counter[str]
    n_flagged: int = 0

    @property
    def n_captions(self) -> int:
        """Captions of any length."""
        return int(self.counts.sum())

    @property
    def median(self) -> int:
        """Median number of words; the smaller of two middle ones."""
        half = np.searchsorted(self.counts.cumsum(), (self.n_captions + 1) // 2)
        return int(half)


def read_lengths(run: RunFolder) -> dict[str, CaptionLengths]:
    """Returns granularity to lengths and flags, of granularities with captions.

    From summaries; those that a removal writes say neither, and their tables do.
    """
    granularities = [granularity.name for granularity in run.config.granularities]
    found = {
        name: CaptionLengths(np.zeros(MAX_LENGTH + 1, np.int64), collections.Counter())
        for name in granularities
    }
    if not granularities:
        return {}
    tables = run.flags
    summaries = Summaries.read(tables.folder)
    for lot in run.lots:
        summary = summaries.get(lot.name)
        if summary is None:
            continue
        if flag_counts.LENGTHS in summary:
            _add_summary(found, summary)
            continue
        table = tables.read(lot.name, ["granularity", "flags", "n_words"])
        for name, one in found.items():
            _add(one, table.filter(pc.equal(table["granularity"], name)))
    return {name: one for name, one in found.items() if one.n_captions}


def _add_summary(
    name_to_found: Mapping[str, CaptionLengths], summary: Mapping[str, Any]
) -> None:
    """Adds what a summary of flags says of a lot."""
    for name, n_words_to_n in summary[flag_counts.LENGTHS].items():
        found, flagged = name_to_found[name], summary[flag_counts.COUNTS][name]
        for n_words, n in n_words_to_n.items():
            found.counts[min(int(n_words), MAX_LENGTH)] += n
        found.n_flagged += flagged["n_flagged"]
        found.flags.update(flagged["flag_to_count"])


def _add(found: CaptionLengths, table: pa.Table) -> None:
    n_words = table["n_words"].to_numpy().clip(0, MAX_LENGTH)
    found.counts += np.bincount(n_words, minlength=MAX_LENGTH + 1)
    flags = table["flags"]
    flagged = flags.filter(pc.greater(pc.list_value_length(flags), 0)).to_pylist()
    found.n_flagged += len(flagged)
    found.flags.update(flag for row in flagged for flag in row)


def read_captions(
    run: RunFolder, kept: Sequence[PairFacts]
) -> dict[str, list[CaptionWithFlags]]:
    """Returns key of the location of kept pairs to captions, in the recipe's order."""
    granularities = run.config.granularities
    tables = {g.name: CaptionTables.open(run.captions(g)) for g in granularities}
    flag_tables = run.flags
    found = {}
    for lot, group in _group_by_lot(kept).items():
        texts = {name: table.texts(lot) for name, table in tables.items()}
        rows = [one.location.row for one in group]
        pairs = from_table(run.pairs(lot.source).take(lot.name, rows), Pair)
        captions = captions_of(pairs, list(granularities), texts)
        flags = _read_flags(flag_tables, lot)
        for one, name_to_texts in zip(group, captions, strict=True):
            found[one.location.key] = [
                CaptionWithFlags(
                    g.name, text, flags.get((one.pair.sample_id, g.name, i), ())
                )
                for g in granularities
                for i, text in enumerate(name_to_texts.get(g.name, ()))
            ]
    return found


def _group_by_lot(facts: Iterable[PairFacts]) -> dict[Lot, list[PairFacts]]:
    found = collections.defaultdict(list)
    for one in sorted(facts, key=lambda one: one.location):
        found[one.lot].append(one)
    return found


def _read_flags(
    tables: LotTables, lot: Lot
) -> Mapping[tuple[bytes, str, int], tuple[str, ...]]:
    try:
        table = tables.read(lot.name)
    except FileNotFoundError:
        return {}
    rows = from_table(table, FlaggedCaption)
    return {(r.sample_id, r.granularity, r.sample_index): r.flags for r in rows}


def read_vocabularies(run: RunFolder, lots: Iterable[Lot]) -> dict[str, Vocabulary]:
    """Returns granularity to the words of its captions in some lots."""
    lots = list(lots)
    found = {}
    for granularity in run.config.granularities:
        tables = CaptionTables.open(run.captions(granularity))
        texts: list[str] = []
        for lot in lots:
            if len(texts) < _N_READ:
                captions = tables.texts(lot).values()
                texts += [text for row in captions for text in row]
        if texts:
            found[granularity.name] = Vocabulary.from_texts(texts[:_N_READ])
    return found
