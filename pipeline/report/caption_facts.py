"""What the report tells of synthetic captions: examples, lengths, words, flags.

In: a run whose captions may be there in part. Out: numbers of all captions that have
flags, the captions of a few pairs, and the words of some thousand captions.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.captioning.flags import words
from pipeline.engine.caption_tables import CaptionTables, captions_of
from pipeline.engine.run_folder import RunFolder
from pipeline.records import FlaggedCaption, Pair
from pipeline.report.pair_facts import Examined
from pipeline.sources.shards import Unit
from pipeline.storage import files
from pipeline.storage.tables import UnitTables, from_table

MAX_LENGTH = 60  # words; the last bin takes longer captions
_N_READ = 5000  # captions of a granularity whose words are counted
_N_WORDS_SHOWN = 25

ALT_TEXT = "alt text"


@dataclasses.dataclass(frozen=True)
class SaidCaption:
    """One caption and the doubts about it."""

    granularity: str
    text: str
    flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The words of some texts."""

    n_texts: int
    n_words: int
    n_distinct: int
    most_frequent: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Vocabulary":
        counts: collections.Counter[str] = collections.Counter()
        n_texts = 0
        for text in texts:
            counts.update(words(text))
            n_texts += 1
        first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        most = tuple(first[:_N_WORDS_SHOWN])
        return cls(n_texts, counts.total(), len(counts), most)


@dataclasses.dataclass
class Lengths:
    """Captions of one granularity: how long, and how many are flagged with what."""

    counts: np.ndarray  # int64 [MAX_LENGTH + 1], by number of words
    flags: collections.Counter[str]
    n_flagged: int = 0

    @property
    def n_captions(self) -> int:
        return int(self.counts.sum())

    @property
    def median(self) -> int:
        """Words of a caption that is longer than half of them."""
        half = np.searchsorted(self.counts.cumsum(), (self.n_captions + 1) // 2)
        return int(half)


def lengths(run: RunFolder) -> dict[str, Lengths]:
    """Granularity to lengths and flags of all captions; empty before they are there."""
    granularities = [granularity.name for granularity in run.config.granularities]
    found = {
        name: Lengths(np.zeros(MAX_LENGTH + 1, np.int64), collections.Counter())
        for name in granularities
    }
    if not granularities:
        return {}
    tables = run.flags
    there = tables.unit_names()
    for unit in run.units:
        if unit.name in there:
            columns = ["granularity", "flags", "n_words"]
            table = tables.read(unit.name, columns)
            for name, one in found.items():
                _add(one, table.filter(pc.equal(table["granularity"], name)))
    return {name: one for name, one in found.items() if one.n_captions}


def _add(found: Lengths, table: pa.Table) -> None:
    n_words = table["n_words"].to_numpy().clip(0, MAX_LENGTH)
    found.counts += np.bincount(n_words, minlength=MAX_LENGTH + 1)
    flags = table["flags"]
    flagged = flags.filter(pc.greater(pc.list_value_length(flags), 0)).to_pylist()
    found.n_flagged += len(flagged)
    found.flags.update(flag for row in flagged for flag in row)


def said_of(run: RunFolder, kept: Sequence[Examined]) -> dict[str, list[SaidCaption]]:
    """Key of the place of a kept pair to its captions, as the recipe lists them."""
    granularities = run.config.granularities
    tables = {g.name: CaptionTables.open(run.captions(g)) for g in granularities}
    flag_tables = run.flags
    found = {}
    for unit, group in _by_unit(kept).items():
        texts = {name: table.texts(unit) for name, table in tables.items()}
        rows = pa.array([one.place.row for one in group])
        pairs = from_table(run.pairs(unit.source).read(unit.name).take(rows), Pair)
        captions = captions_of(pairs, list(granularities), texts)
        flags = _flags(flag_tables, unit)
        for one, name_to_texts in zip(group, captions, strict=True):
            found[one.place.key] = [
                SaidCaption(
                    g.name, text, flags.get((one.pair.sample_id, g.name, i), ())
                )
                for g in granularities
                for i, text in enumerate(name_to_texts.get(g.name, ()))
            ]
    return found


def _by_unit(examined: Iterable[Examined]) -> dict[Unit, list[Examined]]:
    found = collections.defaultdict(list)
    for one in sorted(examined, key=lambda one: one.place):
        found[one.unit].append(one)
    return found


def _flags(
    tables: UnitTables, unit: Unit
) -> Mapping[tuple[bytes, str, int], tuple[str, ...]]:
    if not files.is_file(tables.path(unit.name)):
        return {}
    rows = from_table(tables.read(unit.name), FlaggedCaption)
    return {(r.sample_id, r.granularity, r.sample_index): r.flags for r in rows}


def vocabularies(run: RunFolder, units: Iterable[Unit]) -> dict[str, Vocabulary]:
    """Granularity to the words of captions of some units."""
    units = list(units)
    found = {}
    for granularity in run.config.granularities:
        tables = CaptionTables.open(run.captions(granularity))
        texts: list[str] = []
        for unit in units:
            if len(texts) < _N_READ:
                captions = tables.texts(unit).values()
                texts += [text for row in captions for text in row]
        if texts:
            found[granularity.name] = Vocabulary.of(texts[:_N_READ])
    return found
