"""One image of an evaluation set and what is known of it, decoded on demand.

The readers (see `trainer.evals.sets.readers`) pass encoded files, or arrays if they
have those, and the fields of a JSON object or of a row of a table.
"""

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from pipeline.images import decoder
from trainer.data import hashed_random
from trainer.evals.sets.captions import parse_captions
from trainer.evals.sets.label_names import Names
from trainer.split_names import TEST, TRAIN, parse_split

_HELD_OUT_SHARE = 0.2  # of samples without a split, where a task needs two
_MILLIMETERS = 1000


@dataclasses.dataclass(frozen=True)
class Stored:
    """Bytes in a file, or in a part of one, that are read on demand."""

    path: pathlib.Path
    offset: int = 0
    n_bytes: int = -1  # to the end

    def read(self) -> bytes:
        """Reads the bytes."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.n_bytes)


Part = bytes | np.ndarray | Stored


class SampleError(ValueError):
    """An evaluation set that cannot be used, or a sample of it, which is named."""


@contextlib.contextmanager
def errors_about(name: str) -> Iterator[None]:
    """Turns errors inside into a SampleError that names what they are about."""
    try:
        yield
    except SampleError:
        raise
    except (OSError, RecursionError, SyntaxError, ValueError) as error:
        raise SampleError(f"{name}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a sample is in its set, and what that says of it."""

    key: str
    split: str | None = None
    domain: str | None = None

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of the key, outermost first."""
        return tuple(self.key.split("/")[:-1])

    @property
    def stem(self) -> str:
        """The key without its folders."""
        return self.key.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image with its truths, captions, label and split."""

    key: str  # within its set
    name: str  # for people
    parts: Mapping[str, Part]  # image, mask, depth, normals
    captions: Mapping[str, tuple[str, ...]]  # granularity to captions
    label: str | None = None
    domain: str | None = None
    # `train`, `test` (that is scored), `index`, or another that is left alone
    split: str | None = None
    n_empty_captions: int = 0

    @property
    def place(self) -> Place:
        """Where the sample is."""
        return Place(self.key, self.split, self.domain)

    def encoded(self, kind: str) -> bytes | np.ndarray:
        """Returns a part as it was found: a file, or an array."""
        part = self.parts[kind]
        with errors_about(self.name):
            return part.read() if isinstance(part, Stored) else part

    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the decoded image, uint8 RGB."""
        part = self.encoded("image")
        if isinstance(part, np.ndarray):
            return np.broadcast_to(part, (*part.shape[:2], 3))  # gray ones too
        with errors_about(self.name):
            return decoder.decode(part, formats=decoder.FORMATS).rgb

    def to_square(self, size_px: int) -> UInt8[np.ndarray, "size size 3"]:
        """Squeezes the whole image into a square, as the processor of an export does.

        Bilinear, over as many pixels as one of the square covers.
        """
        image, size = Image.fromarray(self.image()), (size_px, size_px)
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR))

    def mask(self) -> UInt8[np.ndarray, "h w"]:
        """Returns the mask. Raises SampleError unless it has one channel of 8 bits."""
        mask = self._truth("mask")
        is_small = mask.min(initial=0) >= 0 and mask.max(initial=0) <= 255
        if mask.ndim != 2 or not is_small:
            raise SampleError(f"{self.name}: mask: expected one channel of 8 bits")
        return mask.astype(np.uint8)

    def depth(self) -> Float[np.ndarray, "h w"]:
        """Returns meters; 0 or NaN where unknown. PNGs hold millimeters, in 16 bits."""
        depth = self._truth("depth")
        if depth.ndim != 2:
            raise SampleError(f"{self.name}: depth: expected one channel")
        if depth.dtype.kind not in "iufb":
            raise SampleError(
                f"{self.name}: depth of type {depth.dtype}: expected real numbers"
            )
        if depth.dtype.itemsize == 1:
            raise SampleError(
                f"{self.name}: depth of 8 bits, whose unit is not known: expected 16"
                " bits of millimeters (.png), or meters (.npy)"
            )
        is_whole = np.issubdtype(depth.dtype, np.integer)
        return depth.astype(np.float32) / (_MILLIMETERS if is_whole else 1)

    def normals(self) -> Float[np.ndarray, "h w 3"]:
        """Returns normals; zeros or NaN where unknown.

        PNGs hold -1 to 1 as 0 to 255.
        """
        normals = self._truth("normals")
        if normals.shape[2:] != (3,):
            raise SampleError(f"{self.name}: normals: expected three channels")
        if normals.dtype != np.uint8:
            return normals.astype(np.float32)
        is_known = normals.any(axis=-1, keepdims=True)
        return np.where(is_known, normals / np.float32(127.5) - 1, 0)

    def without_parts(self) -> "Sample":
        """Returns the sample without its image and maps, once these are encoded."""
        return dataclasses.replace(self, parts={})

    def has(self, kind: str) -> bool:
        """Whether there is a `label`, `captions`, or a kind of part."""
        if kind == "label":
            return self.label is not None
        return bool(self.captions) if kind == "captions" else kind in self.parts

    def _truth(self, kind: str) -> np.ndarray:
        """A map of the size of the image."""
        if kind not in self.parts:
            raise SampleError(f"{self.name}: no {kind}")
        with errors_about(f"{self.name}: {kind}"):
            found = _array(self.encoded(kind))
        with errors_about(self.name):
            shape = _shape(self.encoded("image"))
        if found.shape[:2] != shape:
            raise SampleError(
                f"{self.name}: {kind} of {_sides(found.shape)}: expected"
                f" {_sides(shape)}, the size of the image"
            )
        return found


def make_sample(
    place: Place,
    name: str,
    parts: Mapping[str, Part],
    fields: Mapping[str, Any],
    names: Names,
) -> Sample | None:
    """Returns a sample, or None if there is neither an image nor a caption.

    `fields`, in any case, may hold captions (see `trainer.evals.sets.captions`),
    `label`, `domain` and `split`, which overrides that of the place; others are
    ignored. Raises SampleError on captions without an image, and on fields of other
    types.
    """
    fields = {**{key.lower(): value for key, value in fields.items()}, **fields}
    with errors_about(name):
        captions, n_empty = parse_captions(fields)
        split, label = fields.get("split"), names.name_of(fields.get("label"))
        split = place.split if split in (None, "") else parse_split(split)
    if "image" not in parts:
        if captions:
            raise SampleError(f"{name}: captions without an image")
        return None
    domain = fields.get("domain")
    return Sample(
        key=place.key,
        name=name,
        parts=parts,
        captions=captions,
        n_empty_captions=n_empty,
        label=label,
        domain=place.domain if domain is None else str(domain),
        split=split,
    )


def deal_split(key: str) -> str:
    """Returns a split for a sample that has none, by a hash of its key."""
    (draw,) = hashed_random.uniforms(1, "evaluation", key.encode(errors="replace"))
    return TEST if draw < _HELD_OUT_SHARE else TRAIN


def _array(part: bytes | np.ndarray) -> np.ndarray:
    """The stored numbers of a PNG, also where they index a palette."""
    if isinstance(part, np.ndarray):
        return part[..., 0] if part.ndim == 3 and part.shape[2] == 1 else part
    if part.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(part), allow_pickle=False)
    if not part.startswith(b"\x89PNG"):
        raise ValueError(f"expected a PNG or .npy, not {part[:8]!r}...")
    with Image.open(io.BytesIO(part), formats=["png"]) as image:
        return np.asarray(image)


def _shape(image: bytes | np.ndarray) -> tuple[int, ...]:
    if isinstance(image, np.ndarray):
        return image.shape[:2]
    return decoder.open_image(image, formats=decoder.FORMATS).size


def _sides(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"
