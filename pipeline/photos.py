"""Packs a folder of photos and a file of their captions into source shards.

    python -m pipeline.photos --images PHOTOS --captions captions.csv --output DATA

The captions are CSV with a header, JSON lines with an object each, or JSON: a list of
such objects, or one object of file names and captions. The first usual name of a column
counts: file_name, file, filename, image, path, and caption, captions, text. In JSON a
caption may be a list of texts; in CSV a photo may have several rows.

Writes DATA/crawl/*.tar, as img2dataset would, and DATA/held_out/*.tar for evaluations:
which photos are held out hangs on their names. `KEY.txt` is the first caption of a
photo, `KEY.json` has all of them, and the file name as `url`.
"""

import argparse
import csv
import hashlib
import io
import json
import pathlib
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline import cli, new_folder

cli.begin(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PHOTOS_PER_SHARD = 1000
PARTS = ("crawl", "held_out")
_NAME_COLUMNS = ("file_name", "file", "filename", "image", "path")
_CAPTION_COLUMNS = ("caption", "captions", "text")

Captions = Mapping[str, Sequence[str]]  # file name to texts


def main(arguments: Sequence[str] | None = None) -> None:
    flags = _parser().parse_args(arguments)
    with cli.exits(cli.WRONG_USAGE, ValueError, OSError):
        _check(flags)
        captions = read_captions(flags.captions)
        found, missing = find_photos(flags.images, captions)
        if not found:
            raise ValueError(
                f"--images {flags.images}: expected photos that {flags.captions} names,"
                f" such as {missing[0]}"
            )
    parts = split(found, flags.held_out)
    with cli.exits(cli.FAILED, OSError), new_folder.made(flags.output) as folder:
        for part, names in parts.items():
            write_shards(folder / part, flags.images, names, captions)
    for part, names in parts.items():
        print(f"{flags.output / part}: {len(names):,} photos")
    if missing:
        expected = f"files ending in {', '.join(SUFFIXES)}, with a caption"
        print(f"left out: {len(missing):,}, such as {missing[0]}: expected {expected}")


def _check(flags: argparse.Namespace) -> None:
    if not 0 <= flags.held_out < 1:
        raise ValueError(f"--held-out {flags.held_out}: expected 0 <= share < 1")
    if flags.output.exists():
        raise ValueError(f"--output {flags.output}: exists, expected a new folder")


def read_captions(path: pathlib.Path) -> Captions:
    """Raises ValueError when a file is no CSV or JSON with the columns it needs."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            rows = _json_rows(json.loads(text))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except (csv.Error, ValueError) as error:
        raise ValueError(f"--captions {path}: {error}") from error
    captions: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 1):
        try:
            name, texts = _name_and_texts(row)
        except ValueError as error:
            raise ValueError(f"--captions {path}, entry {number}: {error}") from error
        captions.setdefault(name, []).extend(texts)
    if not captions:
        raise ValueError(f"--captions {path}: expected at least one caption")
    return captions


def _json_rows(content: Any) -> list[Any]:
    if isinstance(content, dict):
        return [{"file": name, "caption": value} for name, value in content.items()]
    if isinstance(content, list):
        return content
    raise ValueError("expected a list of objects, or an object of names and captions")


def _name_and_texts(row: Any) -> tuple[str, list[str]]:
    if not isinstance(row, dict):
        raise ValueError(f"{row!r}: expected an object")
    name, texts = (_first(row, c) for c in (_NAME_COLUMNS, _CAPTION_COLUMNS))
    texts = [texts] if isinstance(texts, str) else texts
    is_texts = isinstance(texts, list) and all(isinstance(t, str) for t in texts)
    if not isinstance(name, str) or not is_texts:
        raise ValueError(f"{row}: expected a file name, and texts as its caption")
    return name, [text.strip() for text in texts if text.strip()]


def _first(row: Mapping[str, Any], columns: Sequence[str]) -> Any:
    for column in columns:
        if column in row:
            return row[column]
    found = ", ".join(map(str, row))
    raise ValueError(f"{found}: expected a column {' or '.join(columns)}")


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


def split(names: Iterable[str], share: float) -> dict[str, list[str]]:
    """Photos to curate and photos for evaluation, by the hash of their names."""
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in names:
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        is_held_out = int.from_bytes(digest, "big") < share * 2**64
        parts[PARTS[is_held_out]].append(name)
    return parts


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


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python -m pipeline.photos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag, meaning in (
        ("images", "folder of photos"),
        ("captions", "CSV, JSON or JSON lines"),
        ("output", "folder that is made"),
    ):
        parser.add_argument(f"--{flag}", type=pathlib.Path, required=True, help=meaning)
    parser.add_argument(
        "--held-out", type=float, default=0.1, help="share of photos (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    main()
