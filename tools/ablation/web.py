"""Writes the data of the ablation: a crawl, its captions, and evaluations.

    FOLDER/crawl/*.tar        pairs as img2dataset writes them, with the web's noise
    FOLDER/captions/*.parquet true captions of the images, one file per granularity
    FOLDER/names/             scenes of all combinations: masks of color and shape
    FOLDER/colors/           the same scenes: masks of color alone
    FOLDER/shapes/{train,test}  scenes with masks of background and shapes, and the
                              shape of the largest object; the curated seeds as well

Only `names`, `colors` and `shapes/test` have held-out pairs, in pictures and texts.
Equal sizes and seeds give equal bytes.
"""

import dataclasses
import enum
import io
import itertools
import json
import pathlib
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.demo_web import drawn_pair
from pipeline.demo_web.off_topic import draw_off_topic
from pipeline.demo_web.scene import Image
from pipeline.records import content_hash
from tools.ablation import scenes, texts
from tools.ablation.scenes import ALL_PAIRS, SEEN_PAIRS, SIDES_PX, Pair, Picture

PAIRS_PER_SHARD = 1000
_SIZE = "size.json"

Member = tuple[str, bytes]  # name and data


@dataclasses.dataclass(frozen=True)
class WebSize:
    """Numbers of pairs and images, and the seed they are drawn from."""

    n_pairs: int  # of the crawl
    n_names: int  # images of `names`
    n_shapes: int  # images of `shapes/train`; the test has half as many
    rng_seed: int = 0


class Planted(enum.StrEnum):
    """The kinds of pairs in the crawl; `SHARES` has their shares."""

    TRUE = "true"  # the alt text names an object of the picture
    WRONG = "wrong"  # it names another one
    JUNK = "junk"  # it names none
    DUPLICATE = "duplicate"  # the picture is an earlier one's, to the byte
    OFF_TOPIC = "off_topic"  # the picture shows no scene


SHARES = {
    Planted.TRUE: 0.55,
    Planted.WRONG: 0.15,
    Planted.JUNK: 0.10,
    Planted.DUPLICATE: 0.12,
    Planted.OFF_TOPIC: 0.08,
}


class _Stream(enum.IntEnum):
    """The independent streams of random numbers."""

    CRAWL = 0
    NAMES = 1
    SHAPES_TRAIN = 2
    SHAPES_TEST = 3


@dataclasses.dataclass(frozen=True)
class CrawledPair:
    """A pair of the crawl, its true captions and its kind."""

    image: bytes
    alt_text: str
    captions: dict[str, str]
    planted: Planted


def is_written(size: WebSize, folder: pathlib.Path) -> bool:
    """Whether a web of this size is written.

    Raises:
      ValueError: if the folder has a web of another size.
    """
    done = folder / _SIZE
    if not done.exists():
        return False
    found, wanted = json.loads(done.read_text()), dataclasses.asdict(size)
    if found != wanted:
        raise ValueError(f"{folder}: {found} is drawn there, expected {wanted}")
    return True


def write(size: WebSize, folder: pathlib.Path) -> None:
    """Writes the web unless it is there; `size.json` comes last."""
    if is_written(size, folder):
        return
    _write_crawl(size, folder)
    _write_scenes(folder / "names", _draw_named(size, np.asarray), scenes.CLASSES)
    by_color = _draw_named(size, scenes.colors_of)
    _write_scenes(folder / "colors", by_color, scenes.COLORS)
    classes = ("background", *scenes.SHAPES)
    for split, stream, pairs, n in (
        ("train", _Stream.SHAPES_TRAIN, SEEN_PAIRS, size.n_shapes),
        ("test", _Stream.SHAPES_TEST, ALL_PAIRS, size.n_shapes // 2),
    ):
        rngs = _generators(size, stream, n)
        members = (_shape_members(rng, pairs) for rng in rngs)
        _write_scenes(folder / "shapes", members, classes, split)
    (folder / _SIZE).write_text(json.dumps(dataclasses.asdict(size)))


def draw_pair(size: WebSize, index: int) -> CrawledPair:
    """Draws one pair of the crawl from random numbers of its own."""
    rng = np.random.default_rng((size.rng_seed, _Stream.CRAWL, index))
    planted = Planted(str(rng.choice([*SHARES], p=[*SHARES.values()])))
    if planted is Planted.OFF_TOPIC:
        rgb, text = draw_off_topic(rng, int(rng.choice(SIDES_PX)))
        captions = dict.fromkeys(texts.GRANULARITIES, text)
        return CrawledPair(drawn_pair.encode_jpeg(rgb, rng), text, captions, planted)
    if planted is Planted.DUPLICATE and index:
        earlier = draw_pair(size, int(rng.integers(index)))
        return dataclasses.replace(earlier, planted=planted)
    picture = scenes.sample_picture(rng, SEEN_PAIRS)
    return CrawledPair(
        drawn_pair.encode_jpeg(picture.rgb, rng),
        _alt_text(picture, planted, rng),
        texts.captions(picture.scene),
        planted,
    )


def _alt_text(picture: Picture, planted: Planted, rng: np.random.Generator) -> str:
    if planted is Planted.WRONG:
        return texts.wrong_alt_text(picture.scene, SEEN_PAIRS, rng)
    if planted is Planted.JUNK:
        return texts.junk_alt_text(rng)
    return texts.alt_text(picture.scene, rng)


def _write_crawl(size: WebSize, folder: pathlib.Path) -> None:
    hash_to_captions = {}
    for start in range(0, size.n_pairs, PAIRS_PER_SHARD):
        indices = range(start, min(start + PAIRS_PER_SHARD, size.n_pairs))
        key_to_pair = {f"{i:09d}": draw_pair(size, i) for i in indices}
        members = itertools.starmap(_crawl_members, key_to_pair.items())
        name = f"crawl-{start // PAIRS_PER_SHARD:05d}.tar"
        _write_tar(folder / "crawl" / name, itertools.chain.from_iterable(members))
        for pair in key_to_pair.values():
            hash_to_captions[content_hash(pair.image)] = pair.captions
    (folder / "captions").mkdir(exist_ok=True)
    for name in texts.GRANULARITIES:
        captions = [found[name] for found in hash_to_captions.values()]
        table = pa.table({"image_hash": [*hash_to_captions], "text": captions})
        pq.write_table(table, folder / "captions" / f"{name}.parquet")


def _crawl_members(key: str, pair: CrawledPair) -> Iterator[Member]:
    facts = {"key": key, "caption": pair.alt_text, "planted": str(pair.planted)}
    yield f"{key}.jpg", pair.image
    yield f"{key}.txt", pair.alt_text.encode()
    yield f"{key}.json", json.dumps(facts).encode()


def _draw_named(size: WebSize, ids: Callable[[Image], Image]) -> Iterator[list[Member]]:
    """Draws scenes of all combinations; `ids` maps masks of pairs to other masks."""
    for rng in _generators(size, _Stream.NAMES, size.n_names):
        picture = scenes.sample_picture(rng, ALL_PAIRS)
        facts = {"captions": texts.captions(picture.scene)}
        yield _scene_members(picture, ids(picture.mask), facts, rng)


def _shape_members(rng: np.random.Generator, pairs: Sequence[Pair]) -> list[Member]:
    picture = scenes.sample_picture(rng, pairs)
    text = texts.captions(picture.scene)["short"]
    facts = {"label": text.split()[-1]}
    mask = scenes.shapes_of(picture.mask)
    return [*_scene_members(picture, mask, facts, rng), ("txt", text.encode())]


def _scene_members(
    picture: Picture,
    mask: Image,
    facts: Mapping[str, object],
    rng: np.random.Generator,
) -> list[Member]:
    """The files of one evaluation image, by their endings."""
    _, png = cv2.imencode(".png", mask)
    return [
        ("jpg", drawn_pair.encode_jpeg(picture.rgb, rng)),
        ("json", json.dumps(facts).encode()),
        ("seg.png", png.tobytes()),
    ]


def _write_scenes(
    folder: pathlib.Path,
    images: Iterable[list[Member]],
    classes: Sequence[str],
    split: str = "test",
) -> None:
    members = (
        (f"{number:05d}.{ending}", data)
        for number, files in enumerate(images)
        for ending, data in files
    )
    _write_tar(folder / split / f"{split}.tar", members)
    (folder / "classes.json").write_text(json.dumps(classes))


def _generators(
    size: WebSize, stream: _Stream, n: int
) -> Iterator[np.random.Generator]:
    return (np.random.default_rng((size.rng_seed, stream, i)) for i in range(n))


def _write_tar(path: pathlib.Path, members: Iterable[Member]) -> None:
    """Writes a tar without times and users, so that equal members give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
