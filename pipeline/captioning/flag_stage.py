"""Flags doubtful captions of the kept images; drops none.

In: lots with decisions and captions. Out: for each lot a table of `FlaggedCaption`,
one row per caption of a kept pair, ordered by pairs of the lot, granularities of the
recipe and samples. Flags drop a caption only at `export`, so a new threshold captions
nothing again. The summary of a table says what it is made of: of a pool that grows, the
tables of the other lots stay, unless a text of theirs has become frequent.
"""

import collections
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
import pyarrow.compute as pc

from pipeline.captioning import flag_counts
from pipeline.captioning.caption_scores import (
    STAGE,
    CaptionScores,
    MeasureCaptions,
    ScoredCaption,
    TextEncoderHandler,
)
from pipeline.captioning.flag_counts import FlagCounts
from pipeline.captioning.flags import (
    CaptionFacts,
    flags_of,
    normalize_text,
    repetition,
    words,
)
from pipeline.config.captions import CaptionQuality, Granularity
from pipeline.config.fingerprint import fingerprint
from pipeline.config.prompts import prompt_hash
from pipeline.engine.caption_tables import CaptionTables, captions_of, prompt_of
from pipeline.engine.counters import add_to_counter
from pipeline.engine.kept_pairs import read_kept_pairs
from pipeline.engine.run_folder import RunFolder
from pipeline.records import KEPT, FlaggedCaption, Pair, content_hash
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.json_files import read_json
from pipeline.storage.tables import LotTables, to_table

Text = tuple[str, bytes]  # granularity, hash of the normalized text


class Flag(beam.PTransform):
    """Measures captions, flags them, and passes the lots on.

    Counters: `captions_checked`, `captions_flagged` and one per flag, `flagged_*`;
    `texts_detected` and `texts_encoded`, the texts that models had not seen before.
    """

    def __init__(
        self, run: RunFolder, encoder_handler: TextEncoderHandler | None = None
    ) -> None:
        super().__init__()
        granularities = run.config.granularities
        scores = tuple(CaptionScores.of(run, one) for one in granularities)
        handler = encoder_handler or TextEncoderHandler(run.config.encoder)
        self._quality = run.config.caption_quality
        self._flags = run.flags
        self._receipt = run.flag_inputs_fingerprint
        self._inputs = _Inputs.of(run, scores)
        self._measure = MeasureCaptions(run, scores, handler)

    def expand(self, lots: beam.PCollection) -> beam.PCollection:
        measured = (
            lots
            | "Distribute lots" >> beam.Reshuffle()
            | "Measure captions" >> beam.ParDo(self._measure)
        )
        text_to_n_images = (
            measured
            | "Read texts" >> beam.ParDo(_ReadTexts(self._inputs))
            | "Count an image once" >> beam.Distinct()
            | "Drop images" >> beam.Map(lambda text_of_image: text_of_image[0])
            | "Count images" >> beam.combiners.Count.PerElement()
            | "Keep frequent" >> beam.Filter(_is_frequent, self._quality.max_identical)
        )
        flagged = measured | "Flag captions" >> beam.ParDo(
            _FlagLot(self._inputs, self._quality, self._flags),
            text_to_n_images=beam.pvalue.AsDict(text_to_n_images),
        )
        _ = (
            flagged
            | "Count lots" >> beam.combiners.Count.Globally()
            | "Write the receipt"
            >> beam.Map(_write_receipt, self._flags.folder, self._receipt)
        )
        return flagged


def _write_receipt(n_lots: int, folder: str, inputs: str) -> None:
    """Says, when all tables are written, what they are made of."""
    path = files.join(folder, flag_counts.RECEIPT_NAME)
    content = {flag_counts.INPUTS: inputs, "n_lots": n_lots}
    if read_json(path) != content:
        files.write(path, json.dumps(content).encode() + b"\n")


@dataclasses.dataclass(frozen=True)
class _PairCaption:
    """One caption of a kept pair."""

    pair: Pair
    granularity: Granularity
    prompt: str
    others: tuple[str, ...]  # the pair's captions of granularities listed before
    scored: ScoredCaption

    @property
    def text(self) -> Text:
        text = normalize_text(self.scored.row.text)
        return self.granularity.name, content_hash(text.encode())


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """The tables of earlier stages, small enough to travel to every worker."""

    source_to_pairs: Mapping[str, LotTables]
    decisions: LotTables
    scores: tuple[CaptionScores, ...]  # in the order of the recipe

    @classmethod
    def of(cls, run: RunFolder, scores: tuple[CaptionScores, ...]) -> "_Inputs":
        source_to_pairs = {s.name: run.pairs(s) for s in run.config.sources}
        return cls(source_to_pairs, run.decisions, scores)

    def open_captions(self) -> dict[str, CaptionTables]:
        return {
            scores.granularity.name: CaptionTables.open(scores.folder)
            for scores in self.scores
        }

    def captions(
        self, lot: Lot, tables: Mapping[str, CaptionTables]
    ) -> Iterator[_PairCaption]:
        """All captions of the kept pairs, in the order of the table of flags."""
        name_to_scored = {
            scores.granularity.name: scores.by_key(lot, tables[scores.granularity.name])
            for scores in self.scores
        }
        name_to_texts = {
            name: {
                key: tuple(one.row.text for one in row) for key, row in found.items()
            }
            for name, found in name_to_scored.items()
        }
        granularities = [scores.granularity for scores in self.scores]
        pairs = self._kept_pairs(lot)
        known = captions_of(pairs, granularities, name_to_texts)
        for pair, captions in zip(pairs, known, strict=True):
            others: tuple[str, ...] = ()
            for granularity in granularities:
                texts = captions.get(granularity.name, ())
                prompt = prompt_of(granularity, pair, captions)
                if prompt is not None and texts:
                    key = (pair.image_hash, prompt_hash(prompt))
                    for scored in name_to_scored[granularity.name][key]:
                        yield _PairCaption(pair, granularity, prompt, others, scored)
                others = (*others, *texts)

    def count_kept(self, lot: Lot) -> int:
        """How many pairs of a lot are kept."""
        outcomes = self.decisions.read(lot.name, ["outcome"])["outcome"]
        return pc.sum(pc.equal(outcomes, KEPT)).as_py() or 0

    def _kept_pairs(self, lot: Lot) -> list[Pair]:
        pairs = self.source_to_pairs[lot.source.name]
        return read_kept_pairs(pairs, self.decisions, lot)


class _ReadTexts(beam.DoFn):
    """Yields (text, image hash) of each caption of a lot."""

    def __init__(self, inputs: _Inputs) -> None:
        self._inputs = inputs
        self._tables: dict[str, CaptionTables] = {}

    def setup(self) -> None:
        self._tables = self._inputs.open_captions()

    def process(self, lot: Lot) -> Iterator[tuple[Text, bytes]]:
        for caption in self._inputs.captions(lot, self._tables):
            if normalize_text(caption.scored.row.text):  # else its flag is EMPTY
                yield caption.text, caption.pair.image_hash


def _is_frequent(text_and_n_images: tuple[Text, int], max_identical: int) -> bool:
    _, n_images = text_and_n_images
    return n_images - 1 > max_identical


class _FlagLot(beam.DoFn):
    """Writes the flags of a lot unless they are there, of the same inputs."""

    def __init__(
        self, inputs: _Inputs, quality: CaptionQuality, flags: LotTables
    ) -> None:
        self._inputs = inputs
        self._quality = quality
        self._flags = flags
        self._tables: dict[str, CaptionTables] = {}

    def setup(self) -> None:
        self._tables = self._inputs.open_captions()

    def process(self, lot: Lot, text_to_n_images: Mapping[Text, int]) -> Iterator[Lot]:
        captions = list(self._inputs.captions(lot, self._tables))
        frequent = {one.text for one in captions} & text_to_n_images.keys()
        inputs = self._identify(lot, frequent)
        if not self._is_of(lot, inputs):
            rows = [
                self._row(caption, text_to_n_images.get(caption.text, 0))
                for caption in captions
            ]
            facts = {
                flag_counts.INPUTS: inputs,
                flag_counts.COUNTS: _counts(captions, rows),
                flag_counts.LENGTHS: _lengths(rows),
                flag_counts.KEPT_PAIRS: self._inputs.count_kept(lot),
            }
            self._flags.replace(lot.name, to_table(rows, FlaggedCaption), facts)
            _count_rows(rows)
        yield lot

    def _identify(self, lot: Lot, frequent: Iterable[Text]) -> str:
        """Of all that the flags of a lot depend on, beside settings."""
        decisions = self._inputs.decisions.read_summary(lot.name)["sha256"]
        names = {name: tables.names(lot) for name, tables in self._tables.items()}
        texts = sorted((name, text.hex()) for name, text in frequent)
        return fingerprint("flags", decisions, names, texts)

    def _is_of(self, lot: Lot, inputs: str) -> bool:
        if not self._flags.has(lot.name):
            return False
        return self._flags.read_summary(lot.name).get(flag_counts.INPUTS) == inputs

    def _row(self, caption: _PairCaption, n_images: int) -> FlaggedCaption:
        scored, row = caption.scored, caption.scored.row
        facts = CaptionFacts(
            text=row.text,
            finish_reason=row.finish_reason,
            mean_logprob=row.mean_logprob,
            prompt=caption.prompt,
            n_words=caption.granularity.n_words,
            alt_text=caption.pair.alt_text,
            others=caption.others,
            n_images=n_images,
            language=scored.language,
            alignment_score=scored.alignment_score,
        )
        word_list = words(row.text)
        return FlaggedCaption(
            sample_id=caption.pair.sample_id,
            granularity=caption.granularity.name,
            sample_index=row.sample_index,
            flags=tuple(map(str, flags_of(facts, self._quality))),
            n_words=len(word_list),
            repetition=repetition(word_list),
            language=scored.language.code,
            language_probability=scored.language.probability,
            alignment_score=scored.alignment_score,
        )


def _counts(
    captions: Sequence[_PairCaption], rows: Sequence[FlaggedCaption]
) -> dict[str, dict]:
    """The fields of `FlagCounts` of a lot, by granularity."""
    found: dict[str, FlagCounts] = collections.defaultdict(FlagCounts)
    last: dict[str, Pair] = {}
    for caption, row in zip(captions, rows, strict=True):
        is_new = last.get(row.granularity) is not caption.pair
        last[row.granularity] = caption.pair
        counts = collections.Counter(row.flags)
        one = FlagCounts(1, bool(row.flags), counts, is_new)
        found[row.granularity] = found[row.granularity].add(one)
    return {name: vars(counts) for name, counts in found.items()}


def _lengths(rows: Iterable[FlaggedCaption]) -> dict[str, dict[int, int]]:
    """Granularity to the number of words to how many captions have so many."""
    found: dict[str, dict[int, int]] = collections.defaultdict(collections.Counter)
    for row in rows:
        found[row.granularity][row.n_words] += 1
    return found


def _count_rows(rows: list[FlaggedCaption]) -> None:
    add_to_counter(STAGE, "captions_checked", len(rows))
    add_to_counter(STAGE, "captions_flagged", sum(bool(row.flags) for row in rows))
    for flag in (flag for row in rows for flag in row.flags):
        add_to_counter(STAGE, f"flagged_{flag}", 1)
