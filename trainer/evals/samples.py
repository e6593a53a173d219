"""One image of an evaluation set and what is known of it, decoded when asked for.

The sources (see `trainer.evals.sources`) hand over encoded files, or arrays where they
have those, and the fields of a JSON object or of a row of a table.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from trainer import chance, crops, images

PLAIN = "caption"  # granularity of captions that come without one
TRAIN, TEST, INDEX = "train", "test", "index"
SPLITS = {
    "train": TRAIN,
    "training": TRAIN,
    "test": TEST,
    "val": TEST,
    "validation": TEST,
    "query": TEST,
    "index": INDEX,
    "gallery": INDEX,
}
_HELD_OUT_SHARE = 0.2  # of samples without a split, where a task needs two
_MILLIMETRES = 1000

Part = bytes | np.ndarray


class SampleError(ValueError):
    """An evaluation set that cannot be used, or a sample of it, which is named."""


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """Says of what a value is wrong."""
    try:
        yield
    except SampleError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise SampleError(f"{name}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Sample:
    key: str  # within its set
    name: str  # for people
    parts: Mapping[str, Part]  # image, mask, depth, normals
    captions: Mapping[str, tuple[str, ...]]  # granularity to captions
    label: str | None = None
    domain: str | None = None
    split: str | None = None

    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        part = self.parts["image"]
        if isinstance(part, np.ndarray):
            return np.broadcast_to(part, (*part.shape[:2], 3))  # grey ones too
        with about(self.name):
            return images.decode(part, _format(part))

    def squeezed(self, size_px: int) -> UInt8[np.ndarray, "size size 3"]:
        """The whole image in a square."""
        return crops.resize(np.ascontiguousarray(self.image()), size_px)

    def mask(self) -> UInt8[np.ndarray, "h w"]:
        mask = self._truth("mask")
        is_small = mask.min(initial=0) >= 0 and mask.max(initial=0) <= 255
        if mask.ndim != 2 or not is_small:
            raise SampleError(f"{self.name}: mask: expected one channel of 8 bits")
        return mask.astype(np.uint8)

    def depth(self) -> Float[np.ndarray, "h w"]:
        """Metres; 0 or NaN where it is unknown. PNGs hold millimetres."""
        depth = self._truth("depth")
        if depth.ndim != 2:
            raise SampleError(f"{self.name}: depth: expected one channel")
        is_whole = np.issubdtype(depth.dtype, np.integer)
        return depth.astype(np.float32) / (_MILLIMETRES if is_whole else 1)

    def normals(self) -> Float[np.ndarray, "h w 3"]:
        """Zeros or NaN where they are unknown. PNGs hold -1 to 1 as 0 to 255."""
        normals = self._truth("normals")
        if normals.shape[2:] != (3,):
            raise SampleError(f"{self.name}: normals: expected three channels")
        if normals.dtype != np.uint8:
            return normals.astype(np.float32)
        is_known = normals.any(axis=-1, keepdims=True)
        return np.where(is_known, normals / np.float32(127.5) - 1, 0)

    def without_parts(self) -> "Sample":
        """What is left to know once the image is encoded."""
        return dataclasses.replace(self, parts={})

    def _truth(self, kind: str) -> np.ndarray:
        """A map of the size of the image."""
        part = self.parts.get(kind)
        if part is None:
            raise SampleError(f"{self.name}: no {kind}")
        with about(self.name):
            found, shape = _array(part), _shape(self.parts["image"])
        if found.shape[:2] != shape:
            raise SampleError(
                f"{self.name}: {kind} of {_sides(found.shape)}: expected"
                f" {_sides(shape)}, the size of the image"
            )
        return found


def make(
    key: str, name: str, parts: Mapping[str, Part], fields: Mapping[str, Any]
) -> Iterator[Sample]:
    """A sample, or none where there is neither an image nor a caption.

    `fields` may hold `captions`, `caption`, `label`, `domain` and `split`; others are
    left alone. Raises SampleError for captions without an image.
    """
    captions = _captions(fields.get("captions"), fields.get("caption"))
    if "image" not in parts:
        if captions:
            raise SampleError(f"{name}: captions without an image")
        return
    split = fields.get("split")
    if split is not None and split not in SPLITS:
        raise SampleError(f"{name}: split {split!r}: expected {', '.join(SPLITS)}")
    label, domain = fields.get("label"), fields.get("domain")
    yield Sample(
        key,
        name,
        parts,
        captions,
        None if label is None else str(label),
        None if domain is None else str(domain),
        None if split is None else SPLITS[split],
    )


def label_name(label: object, names: Sequence[str], name: str) -> object:
    """The name of a label that is a number, counted from 0, where there are names."""
    if not names or isinstance(label, bool) or not isinstance(label, int | np.integer):
        return label
    if not 0 <= label < len(names):
        raise SampleError(f"{name}: label {label}: expected 0 to {len(names) - 1}")
    return names[int(label)]


def is_of(sample: Sample, split: str) -> bool:
    """Samples that are of no split are put in one, by a hash of their key."""
    if sample.split is not None:
        return sample.split == split
    (draw,) = chance.uniforms(1, "evaluation", sample.key.encode(errors="replace"))
    return split == (TEST if draw < _HELD_OUT_SHARE else TRAIN)


def _captions(found: object, text: object) -> Mapping[str, tuple[str, ...]]:
    if isinstance(found, Mapping):
        return {
            name: tuple(texts) if isinstance(texts, list | tuple) else (texts,)
            for name, texts in found.items()
            if texts
        }
    if isinstance(found, Sequence) and not isinstance(found, str) and len(found):
        return {PLAIN: tuple(found)}
    return {PLAIN: (text.strip(),)} if isinstance(text, str) and text.strip() else {}


def _array(part: Part) -> np.ndarray:
    """Of a PNG the stored numbers, also where they index a palette."""
    if isinstance(part, np.ndarray):
        return part[..., 0] if part.ndim == 3 and part.shape[2] == 1 else part
    if part.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(part), allow_pickle=False)
    with Image.open(io.BytesIO(part), formats=["png"]) as image:
        return np.asarray(image)


def _shape(image: Part) -> tuple[int, ...]:
    if isinstance(image, np.ndarray):
        return image.shape[:2]
    return images.size(image, _format(image))


def _format(data: bytes) -> str:
    """By the first bytes, since tables do not name formats."""
    if data.startswith(b"\xff\xd8"):
        return "jpeg"
    if data.startswith(b"\x89PNG"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise ValueError("expected a JPEG, PNG or WebP image")


def _sides(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"
