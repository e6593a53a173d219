"""The demo's web: a crawl with planted defects, evaluation images and seeds.

In: a `Web`, which says how many pairs and from which seed. Out: tars as img2dataset
writes them, clean scenes with exact masks, and a table of the truth about each pair.
Equal webs give equal bytes.
"""

import bisect
import dataclasses
import enum
import functools
import hashlib
import io
import itertools
import json
import pathlib
import re
import tarfile
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.demo_web import defects, descriptions, drawn_pair, near_copies
from pipeline.demo_web.drawn_pair import DrawnPair, Picture, Planted
from pipeline.demo_web.near_copies import Copy, Transform
from pipeline.demo_web.scene import Scene
from pipeline.storage.file_errors import add_path

MAX_PAIRS = 100_000  # of more, some near-copies would be equal to the byte

_PAIRS_PER_SHARD = 250
_OUR_FILES = re.compile(
    r"crawl(/crawl-\d{5}\.tar)?|evaluation(/evaluation-\d{5}\.tar)?"
    r"|seeds(/seeds-\d{5}\.tar)?|truth\.parquet"
)

Members = Iterable[tuple[str, bytes]]  # name and data


class Stream(enum.IntEnum):
    """Streams of random numbers; each pair has its own generator."""

    PLAN = 0
    CRAWL = 1
    EVALUATION = 2
    SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Slot:
    """The plan of one pair of the crawl: the `rank`-th of its kind, from 0."""

    planted: Planted
    rank: int


@dataclasses.dataclass(frozen=True)
class Web:
    """All that is drawn; every pair is a function of this and of its number."""

    n_pairs: int
    rng_seed: int
    n_evaluation: int = 256  # no multiple of 5, see `_copy`
    n_seeds: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.n_pairs <= MAX_PAIRS:
            raise ValueError(
                f"n_pairs={self.n_pairs}: expected 1 <= n_pairs <= {MAX_PAIRS}"
            )
        if self.rng_seed < 0:
            raise ValueError(f"rng_seed={self.rng_seed}: expected 0 or more")

    def rng(self, stream: Stream, index: int = 0) -> np.random.Generator:
        return np.random.default_rng((self.rng_seed, stream, index))

    @functools.cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The plan of each pair. The first pair is clean: duplicates repeat others."""
        slots = _slots_in_order(self.n_pairs)
        order = self.rng(Stream.PLAN).permutation(self.n_pairs)
        slots = [slots[i] for i in order.tolist()]
        first = next(i for i, slot in enumerate(slots) if slot.planted == Planted.NONE)
        slots[0], slots[first] = slots[first], slots[0]
        return tuple(slots)

    @functools.cached_property
    def clean_indices(self) -> tuple[int, ...]:
        return tuple(i for i, s in enumerate(self.slots) if s.planted == Planted.NONE)

    @property
    def n_shards(self) -> int:
        return -(-self.n_pairs // _PAIRS_PER_SHARD)


def clear(folder: pathlib.Path) -> None:
    """Makes a folder, and removes what an earlier run left there.

    Raises:
      ValueError: if the path is a file, or holds files that this module never writes.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output={folder}: expected a folder")
    paths = sorted(folder.rglob("*"))
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if not _OUR_FILES.fullmatch(name):
            raise ValueError(
                f"output={folder}: expected an empty folder or an earlier output, "
                f"but it holds {name}"
            )
    for path in paths:
        if path.is_file():
            path.unlink()
    for name in ("crawl", "evaluation", "seeds"):
        (folder / name).mkdir(parents=True, exist_ok=True)


def write(web: Web, folder: pathlib.Path) -> None:
    """Writes all shards, and last the truth."""
    truth: list[dict[str, str]] = []
    for shard in range(web.n_shards):
        truth += _write_crawl_shard(web, shard, folder / "crawl")
    _write_clean_scenes(web, Stream.EVALUATION, web.n_evaluation, folder)
    _write_clean_scenes(web, Stream.SEEDS, web.n_seeds, folder)
    with add_path(folder / "truth.parquet"):
        pq.write_table(pa.Table.from_pylist(truth), folder / "truth.parquet")


def crawl_key(index: int) -> str:
    """Number of the shard and of the pair in it, as img2dataset has it."""
    shard, row = divmod(index, _PAIRS_PER_SHARD)
    return f"{shard:05d}{row:04d}"


def clean_key(stream: Stream, index: int) -> str:
    """Such as "evaluation-00007"."""
    return f"{stream.name.lower()}-{index:05d}"


def draw_pair(web: Web, index: int) -> DrawnPair:
    """A pair of the crawl."""
    slot = web.slots[index]
    rng = web.rng(Stream.CRAWL, index)
    match slot.planted:
        case Planted.EXACT_DUPLICATE:
            n_earlier = bisect.bisect(web.clean_indices, index)
            original = web.clean_indices[int(rng.integers(n_earlier))]
            pair = draw_pair(web, original)
            return defects.exact_duplicate(pair, crawl_key(original), rng)
        case Planted.NEAR_COPY:
            picture, copy = _copy(web, slot.rank)
            return near_copies.near_copy(picture, copy, rng)
        case Planted.OFF_TOPIC:
            return defects.off_topic_pair(rng)
    return defects.plant(slot.planted, drawn_pair.sample_picture(rng), rng)


def pair_members(key: str, pair: DrawnPair) -> list[tuple[str, bytes]]:
    """The files of a pair of the crawl, of which the text may be missing."""
    text = [] if pair.alt_text is None else [(f"{key}.txt", pair.alt_text)]
    metadata = _metadata(key, pair.extension, pair.image, pair.size_px, pair.alt_text)
    return [
        (f"{key}.{pair.extension}", pair.image),
        *text,
        (f"{key}.json", _to_json(metadata)),
    ]


def truth_row(key: str, pair: DrawnPair) -> dict[str, str]:
    """The truth about a pair; captions are of the image, "" if off topic."""
    captions = dict.fromkeys(("short", "medium", "detailed"), "")
    if pair.scene is not None:
        captions = descriptions.captions(pair.scene)
    return {
        "key": key,
        "planted": str(pair.planted),
        "expected": str(defects.PLANTED_TO_OUTCOME[pair.planted]),
        "duplicate_of": pair.duplicate_of,
        "language": pair.language,
        "transform": str(pair.transform),
        **captions,
    }


def largest_class(scene: Scene) -> str:
    """Such as "red circle": the class of the largest object."""
    return " ".join(descriptions.by_visible_area(scene)[0].pair)


def _slots_in_order(n_pairs: int) -> list[Slot]:
    slots = [
        Slot(planted, rank)
        for planted, percent in defects.PLANTED_TO_PERCENT.items()
        for rank in range(n_pairs * percent // 100)
    ]
    n_broken = n_pairs * defects.BROKEN_PERCENT // 100
    cycle = itertools.cycle(defects.BROKEN)
    for i, planted in enumerate(itertools.islice(cycle, n_broken)):
        slots.append(Slot(planted, i // len(defects.BROKEN)))
    n_clean = n_pairs - len(slots)
    return slots + [Slot(Planted.NONE, rank) for rank in range(n_clean)]


def _copy(web: Web, rank: int) -> tuple[Picture, Copy]:
    """Cycles through images and transforms.

    As the numbers of both have no common divisor, each image meets each transform
    before one comes again, and then the JPEG quality is another.
    """
    index = rank % web.n_evaluation
    transform = tuple(Transform)[rank % len(Transform)]
    n_rounds = rank // (web.n_evaluation * len(Transform))
    key = clean_key(Stream.EVALUATION, index)
    return _clean_picture(web, Stream.EVALUATION, index), Copy(
        key, transform, index + n_rounds
    )


def _clean_picture(web: Web, stream: Stream, index: int) -> Picture:
    return drawn_pair.sample_picture(web.rng(stream, index))


def _clean_scene_members(
    web: Web, stream: Stream, index: int
) -> Iterator[tuple[str, bytes]]:
    """The files of an evaluation image or a curated seed."""
    rng = web.rng(stream, index)
    picture = drawn_pair.sample_picture(rng)
    key = clean_key(stream, index)
    image = drawn_pair.encode_jpeg(picture.rgb, rng)
    captions = descriptions.captions(picture.scene)
    text = captions["medium"].encode()
    size_px = (picture.rgb.shape[1], picture.rgb.shape[0])
    metadata = _metadata(key, "jpg", image, size_px, text)
    metadata |= {"label": largest_class(picture.scene), "captions": captions}
    _, mask = cv2.imencode(".png", picture.mask)
    yield f"{key}.jpg", image
    yield f"{key}.txt", text
    yield f"{key}.json", _to_json(metadata)
    yield f"{key}.seg.png", mask.tobytes()


def _metadata(
    key: str,
    extension: str,
    image: bytes,
    size_px: tuple[int, int],
    alt_text: bytes | None,
) -> dict[str, object]:
    """The metadata of a pair, as img2dataset writes it."""
    width, height = size_px
    caption = None if alt_text is None else alt_text.decode(errors="replace")
    return {
        "key": key,
        "url": f"https://scenes.example/{key}.{extension}",
        "caption": caption,
        "width": width,
        "height": height,
        "original_width": width,
        "original_height": height,
        "sha256": hashlib.sha256(image).hexdigest(),
        "status": "success",
        "error_message": None,
        "exif": "{}",
    }


def _to_json(record: dict[str, object]) -> bytes:
    return json.dumps(record, ensure_ascii=False, indent=4).encode()


def _write_crawl_shard(
    web: Web, shard: int, folder: pathlib.Path
) -> list[dict[str, str]]:
    """Returns the truth about the pairs of the shard."""
    name = f"crawl-{shard:05d}"
    first = shard * _PAIRS_PER_SHARD
    indices = range(first, min(first + _PAIRS_PER_SHARD, web.n_pairs))
    key_to_pair = {crawl_key(i): draw_pair(web, i) for i in indices}
    members = itertools.starmap(pair_members, key_to_pair.items())
    _write_tar(folder / f"{name}.tar", itertools.chain.from_iterable(members))
    return [
        {"shard": name, **truth_row(key, pair)} for key, pair in key_to_pair.items()
    ]


def _write_clean_scenes(
    web: Web, stream: Stream, n_scenes: int, folder: pathlib.Path
) -> None:
    name = stream.name.lower()
    scenes = (_clean_scene_members(web, stream, i) for i in range(n_scenes))
    path = folder / name / f"{name}-00000.tar"
    _write_tar(path, itertools.chain.from_iterable(scenes))


def _write_tar(path: pathlib.Path, members: Members) -> None:
    """Headers hold no time and no user, so equal members make equal tars."""
    with add_path(path), tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
