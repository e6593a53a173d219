"""Everything known about one pair, from its source shard to its training record.

In: a run folder at any stage, and a sample id. Out: lines of text, and the encoded
image. The only files written into the run folder are missing indexes of images.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow.compute as pc

from pipeline import records
from pipeline.engine import id_index
from pipeline.engine.run_folder import RunFolder
from pipeline.engine.summaries import read_folders
from pipeline.export import manifest
from pipeline.export.receipts import base_of
from pipeline.export.shard_formats import TFRECORD
from pipeline.records import INDEX_DTYPE, KEPT, Sample
from pipeline.report import caption_facts
from pipeline.report.cards import describe_decision, format_number
from pipeline.report.pair_facts import UNDECIDED, PairFacts, References, read_pairs
from pipeline.report.sampling import PairLocation
from pipeline.sources import shards
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.json_files import read_json
from pipeline.storage.prefetch import map_ahead
from pipeline.storage.tables import LotTables, from_table
from recipes.safe_text import visible

_ID_BYTES = 16
_TEXT_CHARS = 2000
_N_LOTS_AHEAD = 8  # whose ids are in memory, 16 MB of a million pairs


def parse_sample_id(text: str) -> bytes:
    """Parses a sample id as the report and the tables of errors write it.

    Raises:
      ValueError: unless it is 32 hexadecimal digits.
    """
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != _ID_BYTES:
        raise ValueError(f"{text!r}: expected a sample id, 32 hexadecimal digits")
    return found


def find_locations(run: RunFolder, sample_id: bytes) -> list[PairLocation]:
    """Finds all pairs with an id; exact duplicates share theirs.

    Raises:
      ValueError: if no scored pair has it.
    """
    numbers = _lots_that_may_hold(run, sample_id)

    def find_rows(number: int) -> list[PairLocation]:
        lot = run.lots[number]
        ids = run.pairs(lot.source).read(lot.name, ["sample_id"])["sample_id"]
        rows = np.flatnonzero(pc.equal(ids, sample_id).to_numpy())
        return [PairLocation(number, row) for row in rows.tolist()]

    found = map_ahead(find_rows, numbers, _N_LOTS_AHEAD, n_threads=_N_LOTS_AHEAD)
    locations = list(itertools.chain.from_iterable(found))
    if not locations:
        raise ValueError(f"{sample_id.hex()}: expected the id of a scored pair")
    return locations


def _lots_that_may_hold(run: RunFolder, sample_id: bytes) -> list[int]:
    """Positions of scored lots of the run."""
    tables = list(dict.fromkeys(run.pairs(source) for source in run.config.sources))
    summaries = read_folders([one.folder for one in tables])
    folder_to_names = {
        one.folder: set(id_index.find_lots(one, found, sample_id))
        for one, found in zip(tables, summaries, strict=True)
    }
    source_to_names = {
        source: folder_to_names[run.pairs(source).folder]
        for source in run.config.sources
    }
    return [
        number
        for number, lot in enumerate(run.lots)
        if lot.name in source_to_names[lot.source]
    ]


def show(run: RunFolder, text: str, image_path: str) -> Iterator[str]:
    """Yields everything known about the pairs with an id, as lines of text.

    Args:
      run: A run folder.
      text: The sample id, 32 hexadecimal digits.
      image_path: File to write the encoded image to, or "".

    Raises:
      ValueError: if there is no such pair, or no image to write.
    """
    locations = find_locations(run, parse_sample_id(text))
    yield from describe_pairs(run, locations)
    if image_path:
        files.write(image_path, read_image_at(run, locations[0]))
        yield f"{'image written':22} {image_path}"


def describe_pairs(run: RunFolder, locations: Sequence[PairLocation]) -> Iterator[str]:
    """Yields everything known about some pairs, one fact per line."""
    found = read_pairs(run, locations)
    is_decided = any(x.decision.outcome != UNDECIDED for x in found.values())
    if is_decided:
        found = read_pairs(run, locations, References.open(run))
    for one in found.values():
        for name, value in (*_facts(one), *_captions(run, one), *_record(run, one)):
            yield f"{name:22} {visible(value, _TEXT_CHARS)}"


def _facts(one: PairFacts) -> Iterator[tuple[str, str]]:
    pair = one.pair
    yield "sample id", pair.sample_id.hex()
    yield "source", f"{one.lot.source.name} {one.shard.uri}"
    yield "place", f"row {one.location.row}, key {pair.key}, offset {pair.offset}"
    yield "address", pair.url or "none"
    if pair.error:
        yield "unreadable", pair.error
        return
    size = f"{pair.width} x {pair.height} {pair.image_format}, {pair.n_bytes:,} bytes"
    yield "image", f"{size}, hash {pair.image_hash.hex()}"
    yield "alt text", pair.alt_text or "none"
    yield "words", str(one.n_words)
    language = one.language
    yield (
        "language",
        f"{language.code or 'unknown'} {format_number(language.probability)}",
    )
    yield "alignment score", format_number(one.alignment_score)
    for name, match in (("nearest evaluation", one.evaluation), ("seed", one.seed)):
        if match is not None:
            yield name, f"{match.name} {format_number(match.similarity)}"
    for drop in filter(None, one.drops):
        value, bound = map(format_number, (drop.value, drop.threshold))
        yield "fails the rule", f"{drop.reason}: {value}, bound {bound} {drop.detail}"
    why = describe_decision(one.decision)
    yield "decision", one.decision.outcome + (f": {why}" if why else "")
    if one.decision.seeds:
        yield "wanted by", ", ".join(one.decision.seeds)


def _captions(run: RunFolder, one: PairFacts) -> Iterator[tuple[str, str]]:
    if one.decision.outcome != KEPT or not run.config.granularities:
        return
    for caption in caption_facts.read_captions(run, [one])[one.location.key]:
        flags = f" [{', '.join(caption.flags)}]" if caption.flags else ""
        yield f"caption {caption.granularity}", caption.text + flags


def _record(run: RunFolder, one: PairFacts) -> Iterator[tuple[str, str]]:
    if one.decision.outcome != KEPT:
        return
    found = find_record(run, one)
    if found is None:
        yield "training record", "none"
        return
    sample = found.sample
    size = f"{sample.width} x {sample.height} {sample.image_format}"
    n_captions = sum(map(len, sample.captions.values()))
    place = f"{found.shard}, record {found.position}"
    yield "training record", f"{place}: {size}, {n_captions} captions"


@dataclasses.dataclass(frozen=True)
class Record:
    """A training record and its location."""

    shard: str
    position: int  # in the shard
    sample: Sample


def find_record(run: RunFolder, one: PairFacts) -> Record | None:
    """Finds the training record of a kept pair; None if no shard has it.

    Records of a lot are in the order of its kept pairs, some of which may not be
    exported. So the record is at the pair's position among the kept pairs of the lot,
    or before it by at most the number of pairs that were not exported.
    """
    content = read_json(files.join(TFRECORD.path(run.root), manifest.NAME))
    fingerprint = run.pool_fingerprint
    if content is None or content["fingerprints"]["decisions"] != fingerprint:
        return None
    lot = run.lots[one.location.lot]
    is_kept = _is_kept(run.decisions, lot)
    shards = [s for s in content["shards"] if base_of(s["name"]) == lot.base]
    n_left_out = int(is_kept.sum()) - sum(shard["n_samples"] for shard in shards)
    last = int(is_kept[: one.location.row].sum())
    start = 0
    for shard in shards:
        first = max(0, last - max(n_left_out, 0) - start)
        stop = min(shard["n_samples"], last + 1 - start)
        for position in range(first, stop):
            sample = _read_sample(run, shard["name"], position)
            if sample.sample_id == one.pair.sample_id:
                return Record(shard["name"], position, sample)
        start += shard["n_samples"]
    return None


def _is_kept(decisions: LotTables, lot: Lot) -> np.ndarray:
    outcomes = decisions.read(lot.name, ["outcome"])["outcome"]
    return pc.equal(outcomes, KEPT).to_numpy()


def _read_sample(run: RunFolder, shard: str, position: int) -> Sample:
    path = files.join(TFRECORD.path(run.root), shard)
    entry_bytes = INDEX_DTYPE.itemsize
    with files.open_for_reading(path + manifest.INDEX_SUFFIX) as file:
        file.seek(position * entry_bytes)
        (entry,) = np.frombuffer(file.read(entry_bytes), INDEX_DTYPE)
    with files.open_for_reading(path) as file:
        file.seek(int(entry["offset"]))
        return records.parse_sample(file.read(int(entry["length"])))


def read_image(run: RunFolder, path_or_id: str) -> bytes:
    """Reads the encoded image of a file, or of the pair with an id.

    Raises:
      ValueError: if the text names neither.
    """
    if files.is_file(path_or_id):
        return files.read(path_or_id)
    try:
        sample_id = parse_sample_id(path_or_id)
    except ValueError as error:
        raise ValueError(f"--like {error}, or a file that is there") from error
    return read_image_at(run, find_locations(run, sample_id)[0])


def read_image_at(run: RunFolder, location: PairLocation) -> bytes:
    """Reads the encoded image of a pair from its source shard.

    Raises:
      ValueError: if it is no longer there, or was never readable.
    """
    lot = run.lots[location.lot]
    table = run.pairs(lot.source).take(lot.name, [location.row])
    (pair,) = from_table(table, records.Pair)
    if pair.error:
        raise ValueError(f"{pair.sample_id.hex()}: expected an image: {pair.error}")
    return next(shards.read_images(lot, [pair]))
