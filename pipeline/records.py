"""The contract between the stages, and between the pipeline and the trainer.

Rows of the tables that the stages exchange, the reasons to drop a pair, and the
features of a training record. Standard library and NumPy only, so that every loader
process of the trainer can import it.
"""

import dataclasses
import enum
import hashlib
import struct
from collections.abc import Iterator, Mapping

import numpy as np

# The version of pipeline and trainer, which setup.py reads here. It is written next to
# results; no fingerprint and no table contains it.
VERSION = "0.2.0"
SCHEMA_VERSION = 1  # of the training records and their manifest

KEPT = "kept"
UNREADABLE = "unreadable"

# One entry per record: where its payload lies in the TFRecord file.
INDEX_DTYPE = np.dtype([("offset", "<u8"), ("length", "<u8")])

CAPTION_PREFIX = "captions/"


class DropReason(enum.StrEnum):
    """Why a readable pair is not kept, in the order in which reasons are tried."""

    OPT_OUT = "opt_out"
    DROP_LIST = "drop_list"
    FEW_WORDS = "few_words"
    BOILERPLATE_ALT_TEXT = "boilerplate_alt_text"
    TINY_IMAGE = "tiny_image"
    EXTREME_ASPECT = "extreme_aspect"
    LANGUAGE = "language"
    LOW_ALIGNMENT = "low_alignment"
    EXACT_DUPLICATE = "exact_duplicate"
    UNSAFE_IMAGE = "unsafe_image"
    NEAR_EVALUATION = "near_evaluation"
    NEAR_DUPLICATE = "near_duplicate"
    FAR_FROM_SEEDS = "far_from_seeds"
    BALANCE = "balance"


class FinishReason(enum.StrEnum):
    """Why a synthetic caption ends where it does."""

    STOP = "stop"  # the captioner ended the text
    LENGTH = "length"  # the text was cut at the limit of new tokens
    IMPORTED = "imported"  # the text was made elsewhere
    ERROR = "error"  # there is no caption: the text is the error


class CaptionFlag(enum.StrEnum):
    """Why a synthetic caption may be a bad one; a caption can have several."""

    NO_END = "no_end"  # cut at the limit of new tokens
    EMPTY = "empty"  # nothing but spaces and punctuation
    REPETITION = "repetition"  # says the same words over and over
    LENGTH = "length"  # number of words outside the range of its granularity
    LOCATION_TOKENS = "location_tokens"  # `<loc0000>`, `<seg000>`
    PROMPT_ECHO = "prompt_echo"  # begins with its prompt
    EQUALS_ALT_TEXT = "equals_alt_text"
    EQUALS_OTHER = "equals_other"  # equals one of an earlier granularity of the pair
    FREQUENT = "frequent"  # many other images have the same
    LANGUAGE = "language"  # none of those expected
    LOW_LOGPROB = "low_logprob"
    LOW_ALIGNMENT = "low_alignment"


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """One input pair as `score` found it; also of pairs that cannot be read."""

    sample_id: bytes  # `sample_id` of the image bytes and the alt text
    key: str  # the source's own name of the pair
    url: str  # "" when the source records none
    alt_text: str  # "" when missing or unreadable
    image_hash: bytes  # `content_hash` of the image bytes
    image_format: str  # "jpeg", "png", "webp"; "" when unreadable
    width: int  # pixels; 0 when unreadable
    height: int
    n_bytes: int  # length of the encoded image
    offset: int  # of the image: its byte in a tar, its row in a Parquet file
    error: str  # why the pair cannot be read; "" when it can
    robots: str = ""  # directives of its owner for robots: "noai, noimageai"
    original_width: int = 0  # pixels, before a crawler resized it; 0 if not recorded
    original_height: int = 0
    shard: int = 0  # position among the shards of the lot

    @property
    def original_sides_px(self) -> tuple[int, int]:
        """Width and height before any resizing; those of the image if not recorded."""
        if self.original_width and self.original_height:
            return self.original_width, self.original_height
        return self.width, self.height


@dataclasses.dataclass(frozen=True, slots=True)
class Language:
    """The detected language of one text; `code` is "" when it is unclear."""

    code: str  # ISO 639-1 where one exists
    probability: float  # in [0, 1]


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
    """A reason to drop a pair, with the value that failed and the bound it missed."""

    reason: DropReason
    value: float
    threshold: float
    detail: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """The decision of `select` on one input pair."""

    sample_id: bytes
    outcome: str  # KEPT, UNREADABLE or a DropReason
    value: float | None  # None when kept, unreadable or without a measure
    threshold: float | None
    detail: str  # the error, the language, the image that it repeats ...
    seeds: tuple[str, ...]  # names of all curated seed sets that want the image


@dataclasses.dataclass(frozen=True, slots=True)
class SyntheticCaption:
    """One synthetic caption: what a captioner answered to an image and a prompt."""

    image_hash: bytes
    prompt_hash: bytes  # of the prompt with its fields filled in
    sample_index: int  # 0 .. n_samples - 1
    text: str
    n_tokens: int  # with the end token; 0 where the captioner gives none
    finish_reason: str  # a FinishReason
    mean_logprob: float  # nats per token; NaN where the captioner gives none


@dataclasses.dataclass(frozen=True, slots=True)
class FlaggedCaption:
    """Doubts about one caption of a kept pair, and the measures behind them."""

    sample_id: bytes
    granularity: str
    sample_index: int
    flags: tuple[str, ...]  # of CaptionFlag, in its order; empty if nothing is doubtful
    n_words: int
    repetition: float  # share of its word sequences that it has said before
    language: str  # ISO 639-1 where one exists; "" when it is unclear
    language_probability: float
    alignment_score: float | None  # cosine with the image; None if not measured


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One training record."""

    sample_id: bytes
    image: bytes  # encoded
    image_format: str
    width: int
    height: int
    alt_text: str  # may be empty
    captions: Mapping[str, tuple[str, ...]]  # granularity to synthetic captions
    alignment_score: float  # cosine, in [-1, 1]
    source: str
    seeds: tuple[str, ...]


def content_hash(data: bytes) -> bytes:
    """BLAKE2b-128 of `data`: 16 bytes.

    >>> content_hash(b"image").hex()
    'bd8df2a8a9f082951387300becc9be66'
    """
    return hashlib.blake2b(data, digest_size=16).digest()


def sample_id(image: bytes, alt_text: bytes) -> bytes:
    """Identity of a pair: 16 bytes, equal on all machines and for all file names.

    BLAKE2b-128 over the length of the image (8 bytes, little-endian), the encoded
    image and the alt text as UTF-8.

    >>> sample_id(b"image", b"a dog").hex()
    '4090f734a6d75a93642c62f79b5bd265'
    >>> sample_id(b"imagea", b" dog") == sample_id(b"image", b"a dog")
    False
    """
    digest = hashlib.blake2b(len(image).to_bytes(8, "little"), digest_size=16)
    digest.update(image)
    digest.update(alt_text)
    return digest.digest()


def to_features(sample: Sample) -> dict[str, list[bytes] | list[float] | list[int]]:
    """Feature name to values, as a `tf.train.Example` holds them.

    >>> sample = Sample(
    ...     sample_id=sample_id(b"image", b"a dog"),
    ...     image=b"image",
    ...     image_format="jpeg",
    ...     width=640,
    ...     height=480,
    ...     alt_text="a dog",
    ...     captions={"short": ("A brown dog.",)},
    ...     alignment_score=0.25,
    ...     source="web",
    ...     seeds=(),
    ... )
    >>> features = to_features(sample)
    >>> features["width"], features["captions/short"]
    ([640], [b'A brown dog.'])
    """
    captions = {
        CAPTION_PREFIX + name: [text.encode() for text in texts]
        for name, texts in sample.captions.items()
    }
    return {
        "sample_id": [sample.sample_id],
        "image": [sample.image],
        "image_format": [sample.image_format.encode()],
        "width": [sample.width],
        "height": [sample.height],
        "alt_text": [sample.alt_text.encode()],
        "alignment_score": [float(sample.alignment_score)],
        "source": [sample.source.encode()],
        "seeds": [name.encode() for name in sample.seeds],
        **captions,
    }


def parse_sample(payload: bytes) -> Sample:
    """Reads one serialized `tf.train.Example` as `export` writes it.

    Raises:
      ValueError: if the payload is not such a record; the message says why.

    >>> parse_sample(b"")
    Traceback (most recent call last):
    ValueError: not a training record: KeyError('sample_id')
    """
    try:
        features = parse_example(payload)
        captions = {
            name.removeprefix(CAPTION_PREFIX): _texts(values)
            for name, values in sorted(features.items())
            if name.startswith(CAPTION_PREFIX)
        }
        return Sample(
            sample_id=features["sample_id"][0],
            image=features["image"][0],
            image_format=_texts(features["image_format"])[0],
            width=features["width"][0],
            height=features["height"][0],
            alt_text=_texts(features["alt_text"])[0],
            captions=captions,
            alignment_score=features["alignment_score"][0],
            source=_texts(features["source"])[0],
            seeds=_texts(features["seeds"]),
        )
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise ValueError(f"not a training record: {error!r}") from error


def parse_example(payload: bytes) -> dict[str, list]:
    r"""Feature name to values of a serialized `tf.train.Example`.

    A reader of the protocol buffer wire format in 40 lines: TensorFlow's own takes
    longer to import than a small run takes to train, in every loader process.

    Raises:
      IndexError, struct.error: on truncated input.
      ValueError: on a wire type that the format does not have.

    >>> parse_example(b"\n\x11\n\x0f\n\x05width\x12\x06\x1a\x04\n\x02\x80\x05")
    {'width': [640]}
    """
    features = {}
    for _, *example in _fields(payload, 0, len(payload)):
        for _, *entry in _fields(payload, *example):
            parts = {number: part for number, *part in _fields(payload, *entry)}
            start, end = parts[1]
            name = payload[start:end].decode()
            features[name] = _feature_values(payload, *parts.get(2, (0, 0)))
    return features


def _texts(values: list) -> tuple[str, ...]:
    return tuple([value.decode() for value in values])


def _feature_values(data: bytes, start: int, end: int) -> list:
    values: list = []
    for kind, *items in _fields(data, start, end):
        for _, first, last in _fields(data, *items):
            if kind == 1:
                values.append(data[first:last])
            elif kind == 2:
                values.extend(
                    struct.unpack(f"<{(last - first) // 4}f", data[first:last])
                )
            else:
                values.extend(_varints(data[first:last]))
    return values


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields (field number, start, end); all fields of the format have a length.

    Places rather than slices: a slice for each level would copy the image four times.
    Nearly all numbers take one byte, which is read here: a call costs as much again.
    """
    position = start
    while position < end:
        tag = data[position]
        position += 1
        if tag > 0x7F:
            tag, position = _varint(data, position - 1)
        if tag & 7 != 2:
            raise ValueError(f"wire type {tag & 7}: expected 2 (length-delimited)")
        length = data[position]
        position += 1
        if length > 0x7F:
            length, position = _varint(data, position - 1)
        start, position = position, position + length
        if position > end:
            raise IndexError(f"field of {length} bytes runs past the end")
        yield tag >> 3, start, position


def _varints(message: bytes) -> Iterator[int]:
    position = 0
    while position < len(message):
        value, position = _varint(message, position)
        yield value - (1 << 64) if value >> 63 else value


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """Returns the number at `position` and the position behind it."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
