"""Imports captions made elsewhere, for the kept images that they name.

In: the lots of a run, and files of captions. Out: for each lot a table of captions of
its kept images that had none; the lots again; lists of rows that were not imported,
and a receipt. Ids and texts cross the shuffle, images do not.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import apache_beam as beam
from apache_beam.pvalue import AsDict, AsSingleton, TaggedOutput

from pipeline.config.captions import Granularity
from pipeline.config.prompts import prompt_hash
from pipeline.engine.caption_tables import STAGE, CaptionTables
from pipeline.engine.counters import add_to_counter
from pipeline.engine.kept_pairs import read_kept_rows
from pipeline.engine.removals import Removals
from pipeline.engine.run_folder import RunFolder
from pipeline.records import FinishReason, SyntheticCaption
from pipeline.sources import imported_captions
from pipeline.sources.imported_captions import ImportedText, UnreadableRow
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.tables import LotTables

RECEIPT_NAME = "import.json"
LEFT_OUT = ("repeated", "unmatched", "unreadable")  # and why: see ImportCaptions
MAX_LISTED = 10_000  # rows of each kind; all are counted

_NO_PROMPT = prompt_hash("")


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Row:
    """A row that was not imported, as a whole or in part."""

    file: str
    row: int
    column: str  # what names its image, or "error"; "" if that is not told
    value: str


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class PlacedText:
    """A text with its position in all files, which are ordered by their digests."""

    file_number: int
    text: ImportedText


@dataclasses.dataclass(frozen=True, slots=True)
class KeptImage:
    """A kept image that texts may name."""

    lot_name: str
    number: int  # among the kept pairs of its lot
    image_hash: bytes
    is_captioned: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """Texts for a kept image without captions."""

    number: int  # among the kept pairs of its lot
    image_hash: bytes
    index_to_text: Mapping[int, str]


@dataclasses.dataclass(frozen=True)
class _Import:
    """The files to import, and the tables to read and to write."""

    folder: str
    imported: tuple[imported_captions.ImportedFile, ...]
    key_name: str
    source_to_pairs: Mapping[str, LotTables]
    decisions: LotTables
    # In a run from which pairs were removed: what names no kept image may name those.
    hides_unmatched: bool

    @classmethod
    def of(cls, run: RunFolder, granularity: Granularity) -> "_Import":
        imported = run.imported_files(granularity)
        return cls(
            folder=run.captions(granularity),
            imported=imported,
            key_name=imported_captions.key_name(imported),
            source_to_pairs={s.name: run.pairs(s) for s in run.config.sources},
            decisions=run.decisions,
            hides_unmatched=bool(Removals.read(run.root).done),
        )

    def left_out(self, file_number: int, row: int, column: str, value: str) -> Row:
        return Row(self.imported[file_number].name, row, column, value)

    def shown(self, key: bytes) -> str:
        return key.decode() if self.key_name == "url" else key.hex()


class ImportCaptions(beam.PTransform):
    """Gives kept images the texts that name them, and passes the lots on.

    Of several texts with the same key and sample index, the first row of the file with
    the smallest digest counts. If pairs of a lot share an image but not a key, the
    first pair counts.

    Counters: `captions_written`; `lots_skipped`, for which there is no new text; and
    rows that were not imported as a whole or in part: `captions_unmatched` name no kept
    image, `captions_repeated` follow another row of the same key and sample index,
    `captions_unreadable` have an error.
    """

    def __init__(self, run: RunFolder, granularity: Granularity) -> None:
        super().__init__()
        self._import = _Import.of(run, granularity)
        self._receipt = {"decisions": run.pool_fingerprint}

    def expand(self, lots: beam.PCollection) -> beam.PCollection:
        read = (
            lots.pipeline
            | "Number files" >> beam.Create(range(len(self._import.imported)))
            | "Distribute files" >> beam.Reshuffle()
            | "Read files"
            >> beam.ParDo(_ReadFile(self._import)).with_outputs(main="texts")
        )
        key_to_image = (
            lots
            | "Distribute lots" >> beam.Reshuffle()
            | "Name kept images" >> beam.ParDo(_NameKeptImages(self._import))
        )
        matched = (
            {"texts": read.texts, "images": key_to_image}
            | "Bring texts to images" >> beam.CoGroupByKey()
            | "Match texts"
            >> beam.ParDo(_Match(self._import)).with_outputs(main="found")
        )
        name_to_lot = lots | "Key by name" >> beam.Map(lambda lot: (lot.name, lot))
        done = (
            {"lot": name_to_lot, "found": matched.found}
            | "Bring texts to lots" >> beam.CoGroupByKey()
            | "Write captions" >> beam.ParDo(_WriteLot(self._import))
        )
        left_out = (
            read.unreadable,
            matched.unmatched,
            matched.repeated,
        ) | "Flatten rows" >> beam.Flatten()
        self._finish(done, left_out)
        return done

    def _finish(self, done: beam.PCollection, left_out: beam.PCollection) -> None:
        """Writes the receipt when all tables are written."""
        n_lots = done | "Count lots" >> beam.combiners.Count.Globally()
        counts = left_out | "Count rows" >> beam.combiners.Count.PerKey()
        listed = left_out | "List rows" >> beam.combiners.Top.SmallestPerKey(MAX_LISTED)
        _ = (
            done.pipeline
            | "Start the receipt" >> beam.Create([self._receipt])
            | "Write the receipt"
            >> beam.Map(
                write_receipt,
                self._import.folder,
                n_lots=AsSingleton(n_lots),
                counts=AsDict(counts),
                listed=AsDict(listed),
            )
        )


def is_complete(run: RunFolder, granularity: Granularity) -> bool:
    """Whether all files were imported for the present decisions."""
    path = files.join(run.captions(granularity), RECEIPT_NAME)
    if not files.is_file(path):
        return False
    receipt = json.loads(files.read(path))
    found = receipt["decisions"], receipt["n_lots"]
    return found == (run.pool_fingerprint, len(run.lots))


def write_receipt(
    receipt: Mapping[str, str],
    folder: str,
    *,
    n_lots: int,
    counts: Mapping[str, int],
    listed: Mapping[str, Sequence[Row]],
) -> None:
    """Lists the rows that were not imported, then marks the import as complete."""
    n_rows = {kind: counts.get(kind, 0) for kind in LEFT_OUT}
    for kind, n in n_rows.items():
        rows = sorted(listed.get(kind, ()))
        lines: list[dict[str, Any]] = [{**receipt, "n_rows": n, "n_listed": len(rows)}]
        lines += [_to_json(row) for row in rows]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        files.write(files.join(folder, f"{kind}.jsonl"), text.encode())
        add_to_counter(STAGE, f"captions_{kind}", n)
    content = {**receipt, "n_lots": n_lots, "n_rows": n_rows}
    data = json.dumps(content, indent=1).encode() + b"\n"
    files.write(files.join(folder, RECEIPT_NAME), data)


def _to_json(row: Row) -> dict[str, Any]:
    named = {row.column: row.value} if row.column else {}
    return {"file": row.file, "row": row.row, **named}


class _ReadFile(beam.DoFn):
    """Yields the texts of a file by key, and rows that cannot be read apart."""

    def __init__(self, job: _Import) -> None:
        self._import = job

    def process(
        self, number: int
    ) -> Iterator[
        tuple[bytes, PlacedText] | TaggedOutput[Literal["unreadable"], tuple[str, Row]]
    ]:
        for text in imported_captions.read(self._import.imported[number].uri):
            if isinstance(text, UnreadableRow):
                row = self._import.left_out(number, text.row, "error", text.error)
                yield TaggedOutput("unreadable", ("unreadable", row))
            else:
                yield text.key, PlacedText(number, text)


class _NameKeptImages(beam.DoFn):
    """Yields the kept images of a lot by the key that texts name them by."""

    def __init__(self, job: _Import) -> None:
        self._import = job

    def setup(self) -> None:
        self._tables = CaptionTables.open(self._import.folder)

    def process(self, lot: Lot) -> Iterator[tuple[bytes, KeptImage]]:
        done = self._tables.keys(lot)
        columns = [self._import.key_name, "image_hash"]
        pairs = self._import.source_to_pairs[lot.source.name]
        kept = read_kept_rows(
            pairs, self._import.decisions, lot, dict.fromkeys(columns)
        )
        keys, hashes = (kept[name].to_pylist() for name in columns)
        for number, (key, image_hash) in enumerate(zip(keys, hashes, strict=True)):
            if key:
                is_captioned = (image_hash, _NO_PROMPT) in done
                name = key.encode() if isinstance(key, str) else key
                yield name, KeptImage(lot.name, number, image_hash, is_captioned)


class _Match(beam.DoFn):
    """Yields (lot name, texts for an image), and rows that are not imported apart."""

    def __init__(self, job: _Import) -> None:
        self._import = job

    def process(
        self, element: tuple[bytes, dict[str, Iterable]]
    ) -> Iterator[
        tuple[str, Found]
        | TaggedOutput[Literal["repeated", "unmatched"], tuple[str, Row]]
    ]:
        key, group = element
        images, texts = list(group["images"]), sorted(group["texts"])
        if not images:
            yield from self._left_out("unmatched", key, texts)
            return
        index_to_text: dict[int, str] = {}
        repeated = []
        for placed in texts:
            if placed.text.sample_index in index_to_text:
                repeated.append(placed)
            else:
                index_to_text[placed.text.sample_index] = placed.text.text
        yield from self._left_out("repeated", key, repeated)
        for image in images:
            if texts and not image.is_captioned:
                found = Found(image.number, image.image_hash, index_to_text)
                yield image.lot_name, found

    def _left_out(
        self, kind: str, key: bytes, texts: Sequence[PlacedText]
    ) -> Iterator[TaggedOutput]:
        """Yields each row once, however many of its texts are not imported."""
        name, value = self._import.key_name, self._import.shown(key)
        if kind == "unmatched" and self._import.hides_unmatched:
            name = value = ""
        places = dict.fromkeys(
            (placed.file_number, placed.text.row) for placed in texts
        )
        for file_number, row in places:
            listed = self._import.left_out(file_number, row, name, value)
            yield TaggedOutput(kind, (kind, listed))


class _WriteLot(beam.DoFn):
    """Writes the imported captions of a lot, and yields the lot."""

    def __init__(self, job: _Import) -> None:
        self._tables = CaptionTables.at(job.folder)

    def process(self, element: tuple[str, dict[str, Iterable]]) -> Iterator[Lot]:
        lot_name, group = element
        (lot,) = group["lot"]
        rows = caption_rows(group["found"])
        if rows:
            self._tables.add(lot_name, rows)
            add_to_counter(STAGE, "captions_written", len(rows))
        else:
            add_to_counter(STAGE, "lots_skipped")
        yield lot


def caption_rows(found: Iterable[Found]) -> list[SyntheticCaption]:
    """Rows ordered by lot and sample; the first finding of an image counts."""
    hash_to_found: dict[bytes, Found] = {}
    for one in sorted(found, key=lambda one: one.number):
        hash_to_found.setdefault(one.image_hash, one)
    return [
        SyntheticCaption(
            image_hash=one.image_hash,
            prompt_hash=_NO_PROMPT,
            sample_index=index,
            text=text,
            n_tokens=0,
            finish_reason=str(FinishReason.IMPORTED),
            mean_logprob=float("nan"),
        )
        for one in hash_to_found.values()
        for index, text in sorted(one.index_to_text.items())
    ]
