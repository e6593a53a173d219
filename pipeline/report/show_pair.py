"""Everything that is known of one pair, from its source shard to its training record.

In: a run folder, at any stage, and a sample id. Out: lines of text, and the encoded
image. Nothing is written into the run folder but missing indexes of images.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystem import BeamIOError

from pipeline import records
from pipeline.engine.run_folder import RunFolder
from pipeline.export import manifest
from pipeline.export.shard_formats import TFRECORD
from pipeline.records import INDEX_DTYPE, KEPT, Sample
from pipeline.report import caption_facts
from pipeline.report.cards import number, verdict_of
from pipeline.report.pair_facts import UNDECIDED, Examined, References, examine
from pipeline.report.sampling import Place
from pipeline.sources import shards
from pipeline.sources.shards import Unit
from pipeline.storage import files
from pipeline.storage.tables import UnitTables, from_table
from recipes.safe_text import visible

_ID_BYTES = 16
_TEXT_CHARS = 2000


def sample_id_of(text: str) -> bytes:
    """A sample id as the report and the tables of errors write it.

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


def find_places(run: RunFolder, sample_id: bytes) -> list[Place]:
    """All pairs with that id: exact duplicates share theirs.

    Raises:
      ValueError: if there is none among the pairs that are scored.
    """
    places = []
    for index, unit in enumerate(run.units):
        tables = run.pairs(unit.source)
        if files.is_file(tables.path(unit.name)):
            ids = tables.read(unit.name, ["sample_id"])["sample_id"]
            rows = np.flatnonzero(pc.equal(ids, sample_id).to_numpy())
            places += [Place(index, row) for row in rows.tolist()]
    if not places:
        raise ValueError(f"{sample_id.hex()}: expected the id of a scored pair")
    return places


def show(run: RunFolder, text: str, image_path: str) -> Iterator[str]:
    """Everything known of the pairs with an id; writes their image if asked to.

    Raises:
      ValueError: if there is no such pair, or no image to write.
    """
    places = find_places(run, sample_id_of(text))
    yield from lines(run, places)
    if image_path:
        files.write(image_path, image_of(run, places[0]))
        yield f"{'image written':22} {image_path}"


def lines(run: RunFolder, places: Sequence[Place]) -> Iterator[str]:
    """What is known of some pairs, one fact a line."""
    found = examine(run, places)
    is_decided = any(x.decision.outcome != UNDECIDED for x in found.values())
    if is_decided:
        found = examine(run, places, References.open(run))
    for one in found.values():
        for name, value in (*_facts(one), *_captions(run, one), *_record(run, one)):
            yield f"{name:22} {visible(value, _TEXT_CHARS)}"


def _facts(one: Examined) -> Iterator[tuple[str, str]]:
    pair = one.pair
    yield "sample id", pair.sample_id.hex()
    yield "source", f"{one.unit.source.name} {one.unit.uri}"
    yield "place", f"row {one.place.row}, key {pair.key}, offset {pair.offset}"
    yield "address", pair.url or "none"
    if pair.error:
        yield "unreadable", pair.error
        return
    size = f"{pair.width} x {pair.height} {pair.image_format}, {pair.n_bytes:,} bytes"
    yield "image", f"{size}, hash {pair.image_hash.hex()}"
    yield "alt text", pair.alt_text or "none"
    yield "words", str(one.n_words)
    language = one.language
    yield "language", f"{language.code or 'unknown'} {number(language.probability)}"
    yield "alignment score", number(one.alignment_score)
    for name, match in (("nearest evaluation", one.evaluation), ("seed", one.seed)):
        if match is not None:
            yield name, f"{match.name} {number(match.similarity)}"
    for drop in filter(None, one.drops):
        bound = f"{number(drop.value)}, bound {number(drop.threshold)} {drop.detail}"
        yield "fails the rule", f"{drop.reason}: {bound}"
    why = verdict_of(one.decision)
    yield "decision", one.decision.outcome + (f": {why}" if why else "")
    if one.decision.seeds:
        yield "wanted by", ", ".join(one.decision.seeds)


def _captions(run: RunFolder, one: Examined) -> Iterator[tuple[str, str]]:
    if one.decision.outcome != KEPT or not run.config.granularities:
        return
    for said in caption_facts.said_of(run, [one])[one.place.key]:
        flags = f" [{', '.join(said.flags)}]" if said.flags else ""
        yield f"caption {said.granularity}", said.text + flags


def _record(run: RunFolder, one: Examined) -> Iterator[tuple[str, str]]:
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
    """A training record and where it lies."""

    shard: str
    position: int  # in the shard
    sample: Sample


def find_record(run: RunFolder, one: Examined) -> Record | None:
    """The training record of a kept pair, if shards of these decisions have it.

    Records stand in the order of the kept pairs, of which some may be left out: the
    pair's is at its place among the kept, or as many before it as are left out.
    """
    content = manifest.read_json(files.join(TFRECORD.path(run.root), manifest.NAME))
    fingerprint = run.decisions_fingerprint
    if content is None or content["fingerprints"]["decisions"] != fingerprint:
        return None
    n_left_out = content["ledger"]["kept"] - content["n_samples"]
    last = _n_kept_before(run, one.place)
    start = 0
    for shard in content["shards"]:
        first = max(0, last - n_left_out - start)
        stop = min(shard["n_samples"], last + 1 - start)
        for position in range(first, stop):
            sample = _read(run, shard["name"], position)
            if sample.sample_id == one.pair.sample_id:
                return Record(shard["name"], position, sample)
        start += shard["n_samples"]
    return None


def _n_kept_before(run: RunFolder, place: Place) -> int:
    """Kept pairs that come before a pair in the order of the shards."""
    own, decisions = run.units[place.unit], run.decisions
    before = [unit for unit in run.units if _order(unit) < _order(own)]
    whole = sum(int(_is_kept(decisions, unit).sum()) for unit in before)
    return whole + int(_is_kept(decisions, own)[: place.row].sum())


def _order(unit: Unit) -> tuple[str, str]:
    return unit.source.name, unit.uri


def _is_kept(decisions: UnitTables, unit: Unit) -> np.ndarray:
    outcomes = decisions.read(unit.name, ["outcome"])["outcome"]
    return pc.equal(outcomes, KEPT).to_numpy()


def _read(run: RunFolder, shard: str, position: int) -> Sample:
    path = files.join(TFRECORD.path(run.root), shard)
    entry_bytes = INDEX_DTYPE.itemsize
    with files.open_for_reading(path + manifest.INDEX_SUFFIX) as file:
        file.seek(position * entry_bytes)
        (entry,) = np.frombuffer(file.read(entry_bytes), INDEX_DTYPE)
    with files.open_for_reading(path) as file:
        file.seek(int(entry["offset"]))
        return records.parse_sample(file.read(int(entry["length"])))


def read_image(run: RunFolder, path_or_id: str) -> bytes:
    """The encoded image in a file, or that of the pair with an id.

    Raises:
      ValueError: if there is neither.
    """
    if files.is_file(path_or_id):
        return files.read(path_or_id)
    return image_of(run, find_places(run, sample_id_of(path_or_id))[0])


def image_of(run: RunFolder, place: Place) -> bytes:
    """The encoded image of a pair, from its source shard.

    Raises:
      ValueError: if it is not there any more, or was never readable.
    """
    unit = run.units[place.unit]
    rows = pa.array([place.row])
    table = run.pairs(unit.source).read(unit.name).take(rows)
    (pair,) = from_table(table, records.Pair)
    if pair.error:
        raise ValueError(f"{pair.sample_id.hex()}: expected an image: {pair.error}")
    try:
        return next(shards.read_images(unit, [pair]))
    except (BeamIOError, OSError) as error:
        raise ValueError(f"{unit.uri}: expected the source shard: {error}") from error
