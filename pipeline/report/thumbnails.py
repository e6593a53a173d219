"""Small pictures of pairs and of reference images, as addresses that hold their data.

In: examined pairs, names of evaluation and seed images. Out: `data:` addresses of
JPEGs that are encoded here: no byte of the web goes into the page as it came. What
cannot be read any more has no picture.
"""

import base64
import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg
from apache_beam.io.filesystem import BeamIOError

from pipeline.config.curation import Limits
from pipeline.engine.run_folder import RunFolder
from pipeline.images import decoder as images
from pipeline.records import Pair
from pipeline.report.pair_facts import Examined
from pipeline.report.sampling import Place
from pipeline.selection.search.reference_sets import normalized
from pipeline.sources import shards
from pipeline.sources.shards import Unit
from pipeline.storage.prefetch import map_ahead
from pipeline.storage.tables import from_table

MAX_BYTES = 10_000  # of one picture
_MAX_SIDE_PX = 168
_QUALITIES = (75, 50, 25, 10)
_UNITS_AHEAD = 4

Named = tuple[str, Place]  # `<set>:<key>` of a reference image, and a pair that is near


def address(
    data: bytes,
    limits: Limits,
    *,
    max_side_px: int = _MAX_SIDE_PX,
    max_bytes: int = MAX_BYTES,
) -> str:
    """A `data:` address of a small JPEG; "" if the image cannot be decoded."""
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


def of_pairs(run: RunFolder, examined: Iterable[Examined]) -> dict[Place, str]:
    """Addresses of the pictures of readable pairs."""
    readable = {one.place: one.pair for one in examined if not one.pair.error}
    by_unit = itertools.groupby(sorted(readable), lambda place: place.unit)
    groups = [(run.units[number], list(places)) for number, places in by_unit]

    def read(group: tuple[Unit, list[Place]]) -> list[str]:
        unit, places = group
        pairs = [readable[place] for place in places]
        return list(_addresses(unit, pairs, run.config.limits))

    found: dict[Place, str] = {}
    pictures = map_ahead(read, groups, _UNITS_AHEAD)
    for (_, places), addresses in zip(groups, pictures, strict=True):
        found |= {p: a for p, a in zip(places, addresses, strict=False) if a}
    return found


def _addresses(unit: Unit, pairs: Sequence[Pair], limits: Limits) -> Iterator[str]:
    """Ends early where a shard has changed or is gone."""
    try:
        for data in shards.read_images(unit, pairs):
            yield address(data, limits)
    except (BeamIOError, OSError, shards.ShardError):
        return


def of_references(
    run: RunFolder, units: Sequence[Unit], wanted: Iterable[Named]
) -> dict[Named, str]:
    """Addresses of the pictures of evaluation or seed images.

    A key can occur in several shards of a set: the image nearest to the pair is meant.
    """
    name_to_pairs = collections.defaultdict(list)
    for name, place in wanted:
        name_to_pairs[name].append(place)
    name_to_places = _find(run, units, name_to_pairs.keys())
    found = {}
    for name, pairs in name_to_pairs.items():
        for pair in pairs:
            places = name_to_places.get(name, [])
            if places:
                unit, row = _nearest(run, units, places, pair)
                rows = pa.array([row])
                table = run.pairs(unit.source).read(unit.name).take(rows)
                shown = _addresses(unit, from_table(table, Pair), run.config.limits)
                found[name, pair] = next(shown, "")
    return found


def _find(
    run: RunFolder, units: Sequence[Unit], names: Iterable[str]
) -> Mapping[str, list[Place]]:
    """Where the readable images of these names lie; places number `units`."""
    set_to_keys = collections.defaultdict(set)
    for name in names:
        set_name, _, key = name.partition(":")
        set_to_keys[set_name].add(key)
    found = collections.defaultdict(list)
    for number, unit in enumerate(units):
        if keys := set_to_keys.get(unit.source.name):
            table = run.pairs(unit.source).read(unit.name, ["key", "error"])
            rows = zip(
                table["key"].to_pylist(), table["error"].to_pylist(), strict=True
            )
            for row, (key, error) in enumerate(rows):
                if key in keys and not error:
                    found[f"{unit.source.name}:{key}"].append(Place(number, row))
    return found


def _nearest(
    run: RunFolder, units: Sequence[Unit], places: Sequence[Place], pair: Place
) -> tuple[Unit, int]:
    if len(places) > 1:
        query = _vector(run, run.units[pair.unit], pair.row)
        places = sorted(
            places, key=lambda p: -float(query @ _vector(run, units[p.unit], p.row))
        )
    return units[places[0].unit], places[0].row


def _vector(run: RunFolder, unit: Unit, row: int) -> np.ndarray:
    table = run.embeddings(unit.source).read(unit.name, ["embedding"])
    vectors, _ = normalized(np.array([table["embedding"][row].as_py()]))
    return vectors[0]
