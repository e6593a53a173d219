"""Reads evaluation sets: img2dataset-style tars of KEY.jpg|png|webp, KEY.txt, KEY.json.

The JSON may hold `label`, the name of the image's class, and `captions`: a list, or
texts by granularity. Without captions, KEY.txt is the one caption.
"""

import glob
import itertools
import json
import pathlib
import tarfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from trainer import crops
from trainer.images import decode

_FORMATS = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "webp": "webp"}
PLAIN = "caption"  # granularity of captions that come without one


class Truth(NamedTuple):
    """What is known of an image."""

    captions: Mapping[str, tuple[str, ...]]  # granularity to captions
    label: str | None


Image = UInt8[np.ndarray, "size size 3"]


class SampleError(ValueError):
    """An evaluation set that cannot be used, or a sample of it, which is named."""


def find_tars(pattern: str) -> list[pathlib.Path]:
    """The tars of a folder or glob, in order. Raises ValueError when there is none."""
    is_folder = pathlib.Path(pattern).is_dir()
    found = sorted(glob.glob(f"{glob.escape(pattern)}/*.tar" if is_folder else pattern))
    if not found:
        raise ValueError(f"{pattern}: no file, expected tars")
    return [pathlib.Path(path) for path in found]


def read(tars: list[pathlib.Path], size_px: int) -> Iterator[tuple[Image, Truth]]:
    """Images, squeezed whole into a square of `size_px`, and what is known of them.

    Raises SampleError on the first one that cannot be read: a score without it would
    be a score of another evaluation set.
    """
    for path in tars:
        try:
            with tarfile.open(path) as tar:
                files = (_read_member(tar, m) for m in tar if m.isfile())
                for key, group in itertools.groupby(files, key=lambda file: file[0]):
                    parts = {extension: data for _, extension, data in group}
                    yield from _sample(key, parts, size_px)
        except (ValueError, tarfile.TarError) as error:
            raise SampleError(f"{path}: {error}") from error


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple:
    """(key, extension, bytes); a key ends at the first dot of the file name."""
    folder, _, name = member.name.rpartition("/")
    stem, _, extension = name.partition(".")
    file = tar.extractfile(member)
    data = file.read() if file else b""  # links have no content of their own
    return f"{folder}/{stem}", extension.lower(), data


def _sample(
    key: str, parts: Mapping[str, bytes], size_px: int
) -> Iterator[tuple[Image, Truth]]:
    """One sample, or none for files without an image."""
    extension = next((name for name in _FORMATS if name in parts), None)
    if extension is None:
        return
    name = key.strip("/")
    try:
        image = decode(parts[extension], _FORMATS[extension])
        metadata = json.loads(parts.get("json", b"{}"))
        captions = _captions(metadata.get("captions"), parts.get("txt", b"").decode())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    yield crops.resize(image, size_px), Truth(captions, metadata.get("label"))


def _captions(found: Mapping | list | None, text: str) -> Mapping[str, tuple[str, ...]]:
    if not found:
        return {PLAIN: (text.strip(),)} if text.strip() else {}
    if isinstance(found, list):
        return {PLAIN: tuple(found)}
    return {
        name: tuple(texts) if isinstance(texts, list) else (texts,)
        for name, texts in found.items()
    }
