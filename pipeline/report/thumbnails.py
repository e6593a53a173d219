"""Small pictures of pairs and of reference images, as `data:` URLs.

In: facts of pairs, names of evaluation and seed images. Out: `data:` URLs of JPEG
images. All are encoded here, so that no byte from the web enters the page unchanged.
Images that can no longer be read have no picture.
"""

import base64
import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import cv2
import numpy as np
import simplejpeg

from pipeline.config.curation import Limits
from pipeline.engine.run_folder import RunFolder
from pipeline.images import decoder as images
from pipeline.records import Pair
from pipeline.report.pair_facts import PairFacts
from pipeline.report.sampling import PairLocation
from pipeline.selection.search.embeddings import normalize
from pipeline.sources import shards
from pipeline.sources.shards import Lot
from pipeline.storage.prefetch import map_ahead
from pipeline.storage.tables import from_table

MAX_BYTES = 10_000  # of one picture
_MAX_SIDE_PX = 168
_QUALITIES = (75, 50, 25, 10)
_LOTS_AHEAD = 4

# `<set>:<key>` of a reference image, and the pair that it is near.
ReferenceOfPair = tuple[str, PairLocation]


def data_url(
    data: bytes,
    limits: Limits,
    *,
    max_side_px: int = _MAX_SIDE_PX,
    max_bytes: int = MAX_BYTES,
) -> str:
    """Returns the `data:` URL of a small JPEG; "" if the image cannot be decoded.

    Args:
      data: The encoded image.
      limits: Limits of the decoder.
      max_side_px: Length of the longer side, at most.
      max_bytes: Size of the JPEG, at most; its quality is lowered to reach it.
    """
    try:
        rgb = images.decode(data, limits).rgb
    except images.ImageError:
        return ""
    height, width, _ = rgb.shape
    scale = min(1.0, max_side_px / max(height, width))
    size_px = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.ascontiguousarray(cv2.resize(rgb, size_px, interpolation=cv2.INTER_AREA))
    encoded = (
        simplejpeg.encode_jpeg(small, quality, colorsubsampling="420")
        for quality in _QUALITIES
    )
    jpeg = next((data for data in encoded if len(data) <= max_bytes), b"")
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode() if jpeg else ""


def draw_pairs(run: RunFolder, facts: Iterable[PairFacts]) -> dict[PairLocation, str]:
    """Returns location to the URL of the picture, for readable pairs."""
    readable = {one.location: one.pair for one in facts if not one.pair.error}
    by_lot = itertools.groupby(sorted(readable), lambda location: location.lot)
    groups = [(run.lots[number], list(group)) for number, group in by_lot]

    def read(group: tuple[Lot, list[PairLocation]]) -> list[str]:
        lot, locations = group
        pairs = [readable[location] for location in locations]
        return list(_draw(lot, pairs, run.config.limits))

    found: dict[PairLocation, str] = {}
    pictures = map_ahead(read, groups, _LOTS_AHEAD)
    for (_, locations), urls in zip(groups, pictures, strict=True):
        found |= {at: url for at, url in zip(locations, urls, strict=False) if url}
    return found


def _draw(lot: Lot, pairs: Sequence[Pair], limits: Limits) -> Iterator[str]:
    """Yields URLs; ends early if the shard has changed or is gone."""
    try:
        for data in shards.read_images(lot, pairs):
            yield data_url(data, limits)
    except (OSError, shards.ShardError):
        return


def draw_references(
    run: RunFolder, lots: Sequence[Lot], wanted: Iterable[ReferenceOfPair]
) -> dict[ReferenceOfPair, str]:
    """Returns (reference, pair) to the URL of the reference's picture.

    Args:
      run: A scored run.
      lots: Lots of the evaluation or the seed sets.
      wanted: References with the pairs they are near. If a key occurs in several
        shards of a set, the image nearest to the pair is taken.
    """
    name_to_pairs = collections.defaultdict(list)
    for name, location in wanted:
        name_to_pairs[name].append(location)
    name_to_images = _find_images(run, lots, name_to_pairs.keys())
    lot_to_wanted = collections.defaultdict(list)
    for name, pairs in name_to_pairs.items():
        for pair in pairs:
            if same_key := name_to_images.get(name, []):
                lot, row = _find_nearest(run, lots, same_key, pair)
                lot_to_wanted[lot].append((row, (name, pair)))
    return {
        reference: url
        for lot, rows in lot_to_wanted.items()
        for reference, url in _draw_rows(run, lot, rows)
    }


def _draw_rows(
    run: RunFolder, lot: Lot, wanted: Sequence[tuple[int, ReferenceOfPair]]
) -> Iterator[tuple[ReferenceOfPair, str]]:
    """Yields URLs of images of a lot, which is read once; "" where it has changed."""
    rows = sorted({row for row, _ in wanted})
    table = run.pairs(lot.source).take(lot.name, rows)
    urls = _draw(lot, from_table(table, Pair), run.config.limits)
    row_to_url = dict(zip(rows, urls, strict=False))
    for row, reference in wanted:
        yield reference, row_to_url.get(row, "")


def _find_images(
    run: RunFolder, lots: Sequence[Lot], names: Iterable[str]
) -> Mapping[str, list[PairLocation]]:
    """Returns name to locations, in `lots`, of the readable images of that name."""
    set_to_keys = collections.defaultdict(set)
    for name in names:
        set_name, _, key = name.partition(":")
        set_to_keys[set_name].add(key)
    found = collections.defaultdict(list)
    for number, lot in enumerate(lots):
        if keys := set_to_keys.get(lot.source.name):
            table = run.pairs(lot.source).read(lot.name, ["key", "error"])
            rows = zip(
                table["key"].to_pylist(), table["error"].to_pylist(), strict=True
            )
            for row, (key, error) in enumerate(rows):
                if key in keys and not error:
                    found[f"{lot.source.name}:{key}"].append(PairLocation(number, row))
    return found


def _find_nearest(
    run: RunFolder,
    lots: Sequence[Lot],
    same_key: Sequence[PairLocation],
    pair: PairLocation,
) -> tuple[Lot, int]:
    """Lot and row of the image nearest to a pair."""
    first = same_key[0]
    if len(same_key) > 1:
        query = _read_vector(run, run.lots[pair.lot], pair.row)
        first = max(
            same_key,
            key=lambda at: float(query @ _read_vector(run, lots[at.lot], at.row)),
        )
    return lots[first.lot], first.row


def _read_vector(run: RunFolder, lot: Lot, row: int) -> np.ndarray:
    table = run.embeddings(lot.source).take(lot.name, [row], ["embedding"])
    vectors, _ = normalize(np.array([table["embedding"][0].as_py()]))
    return vectors[0]
