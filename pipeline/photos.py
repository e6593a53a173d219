"""Packs a folder of photos and a file of their captions into source shards.

    python -m pipeline.photos --images PHOTOS --captions captions.csv --output DATA

The captions are CSV with a header (separated by commas, semicolons, tabs or bars), JSON
lines with an object each, or JSON: a list of such objects, or one object of file names
and captions. The first usual name of a column counts: file_name, file, filename, image,
path, and caption, captions, text. In JSON a caption may be a list of texts; in CSV a
photo may have several rows.

Writes DATA/crawl/*.tar, as img2dataset would, and DATA/held_out/*.tar for evaluations:
which photos are held out depends on their names. `KEY.txt` is the first caption of a
photo, `KEY.json` has all of them, and the file name as `url`.
"""

import argparse
import hashlib
import io
import json
import pathlib
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline.sources import caption_files
from pipeline.storage import atomic_folder
from recipes import command_line

command_line.begin(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PHOTOS_PER_SHARD = 1000
PARTS = ("crawl", "held_out")

Captions = Mapping[str, Sequence[str]]  # file name to texts


def main(arguments: Sequence[str] | None = None) -> None:
    """Packs a folder; exits with one line if the command or a file is wrong."""
    flags = _parser().parse_args(arguments)
    with command_line.exits(command_line.WRONG_USAGE, ValueError, OSError):
        _check(flags)
        captions = read_captions(flags.captions)
        found, missing = find_photos(flags.images, captions)
        if not found:
            raise ValueError(
                f"--images {flags.images}: expected photos that {flags.captions} names,"
                f" such as {missing[0]}"
            )
    parts = split(found, flags.held_out)
    with (
        command_line.exits(command_line.FAILED, OSError),
        atomic_folder.create(flags.output) as folder,
    ):
        for part, names in parts.items():
            write_shards(folder / part, flags.images, names, captions)
    for part, names in parts.items():
        print(f"{flags.output / part}: {len(names):,} photos")
    command_line.warn(_empty_parts(parts, flags.held_out))
    if unnamed := photos_without(flags.images, captions):
        print(f"without an entry: {len(unnamed):,} photos, such as {unnamed[0]}")
    if missing:
        expected = f"files ending in {', '.join(SUFFIXES)}, with a caption"
        print(f"left out: {len(missing):,}, such as {missing[0]}: expected {expected}")


def _check(flags: argparse.Namespace) -> None:
    if not 0 <= flags.held_out < 1:
        raise ValueError(f"--held-out {flags.held_out}: expected 0 <= share < 1")
    if flags.output.exists():
        raise ValueError(f"--output {flags.output}: exists, expected a new folder")


def read_captions(path: pathlib.Path) -> Captions:
    """Raises ValueError when a file cannot be read, or has no caption."""
    try:
        entries = caption_files.read(path)
    except ValueError as error:
        raise ValueError(f"--captions {path}, {error}") from error
    captions: dict[str, list[str]] = {}
    for entry in entries:
        captions.setdefault(entry.name, []).extend(entry.texts)
    if not captions:
        raise ValueError(f"--captions {path}: expected at least one caption")
    n_texts = sum(map(len, captions.values()))
    n_empty = sum(not entry.texts for entry in entries)
    print(
        f"{path}: {len(entries):,} entries, {n_empty:,} of them without a caption,"
        f" {n_texts:,} captions of {len(captions):,} photos"
    )
    return captions


def find_photos(
    folder: pathlib.Path, captions: Captions
) -> tuple[list[str], list[str]]:
    """Names that are photos with a caption, and names that are not; both sorted."""
    found: list[str] = []
    missing: list[str] = []
    for name in sorted(captions):
        is_photo = name.lower().endswith(SUFFIXES) and (folder / name).is_file()
        (found if is_photo and captions[name] else missing).append(name)
    return found, missing


def photos_without(folder: pathlib.Path, captions: Captions) -> list[str]:
    """Names of photos that no caption is of, sorted."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    names = {path.relative_to(folder).as_posix() for path in paths}
    return sorted(names - captions.keys())


def split(names: Iterable[str], share: float) -> dict[str, list[str]]:
    """Photos to curate and photos for evaluation, by the hash of their names."""
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in names:
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        is_held_out = int.from_bytes(digest, "big") < share * 2**64
        parts[PARTS[is_held_out]].append(name)
    return parts


def _empty_parts(parts: Mapping[str, Sequence[str]], share: float) -> Iterator[str]:
    """Yields a line for each part that has no photo although its share is not 0."""
    shares = dict(zip(PARTS, (1 - share, share), strict=True))
    n_photos = sum(map(len, parts.values()))
    for part, names in parts.items():
        if not names and shares[part]:
            yield (
                f"{part}: no photo, as there are only {n_photos:,};"
                f" choose another share than --held-out {share}"
            )


def write_shards(
    folder: pathlib.Path,
    images: pathlib.Path,
    names: Sequence[str],
    captions: Captions,
) -> None:
    """Writes tars into a new folder. The same photos give the same bytes."""
    folder.mkdir(parents=True)
    for first in range(0, len(names), PHOTOS_PER_SHARD):
        path = folder / f"photos-{first // PHOTOS_PER_SHARD:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(first, min(first + PHOTOS_PER_SHARD, len(names))):
                name = names[number]
                for member, data in _members(number, images, name, captions[name]):
                    header = tarfile.TarInfo(member)
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))


def _members(
    number: int, images: pathlib.Path, name: str, texts: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
    key = f"{number:09d}"
    record = {"url": name, "caption": texts[0], "captions": list(texts)}
    yield f"{key}{pathlib.Path(name).suffix.lower()}", (images / name).read_bytes()
    yield f"{key}.txt", texts[0].encode()
    yield f"{key}.json", json.dumps(record, ensure_ascii=False).encode()


def _parser() -> command_line.Parser:
    parser = command_line.Parser(
        prog="python -m pipeline.photos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag, meaning in (
        ("images", "folder of photos"),
        ("captions", "CSV, TSV, JSON or JSON lines"),
        ("output", "folder that is made"),
    ):
        parser.add_argument(f"--{flag}", type=pathlib.Path, required=True, help=meaning)
    parser.add_argument(
        "--held-out", type=float, default=0.1, help="share of photos (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    main()
