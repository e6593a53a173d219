"""The file of a sentencepiece model: its pieces, and how it treats a text.

The library's own message class needs a protobuf of its own release, so the few fields
that matter are read from the bytes.
Source: google/sentencepiece, `sentencepiece_model.proto`.
"""

import dataclasses
import enum
import itertools
import pathlib
import struct
from typing import Any, NamedTuple, Self

_PIECES, _TRAINER_SPEC, _NORMALIZER_SPEC = 1, 2, 3  # fields of the whole file
_VARINT, _BYTES = 0, 2  # wire types of protobuf; the others have these lengths:
_WIRE_TYPE_TO_LENGTH = {1: 8, 5: 4}

Fields = dict[int, list]


class Algorithm(enum.IntEnum):
    """How a vocabulary was trained."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


class Kind(enum.IntEnum):
    """What a piece is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """One entry of the vocabulary."""

    text: str
    score: float
    kind: Kind


@dataclasses.dataclass(frozen=True)
class SentencePieceFile:
    """The fields that matter; they keep their names in the file."""

    pieces: tuple[Piece, ...]  # by id
    model_type: Algorithm
    byte_fallback: bool
    treat_whitespace_as_suffix: bool
    normalizer: str  # its name
    precompiled_charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool

    @classmethod
    def read(cls, path: pathlib.Path) -> Self:
        """Reads a file that sentencepiece itself has read."""
        fields = _fields(path.read_bytes())
        trainer, normalizer = (
            _fields(fields.get(number, [b""])[-1])
            for number in (_TRAINER_SPEC, _NORMALIZER_SPEC)
        )
        return cls(
            pieces=tuple(map(_piece, fields[_PIECES])),
            model_type=Algorithm(_last(trainer, 3, Algorithm.UNIGRAM)),
            byte_fallback=bool(_last(trainer, 35, False)),
            treat_whitespace_as_suffix=bool(_last(trainer, 24, False)),
            normalizer=_last(normalizer, 1, b"").decode(),
            precompiled_charsmap=_last(normalizer, 2, b""),
            add_dummy_prefix=bool(_last(normalizer, 3, True)),
            remove_extra_whitespaces=bool(_last(normalizer, 4, True)),
            escape_whitespaces=bool(_last(normalizer, 5, True)),
        )


def _piece(message: bytes) -> Piece:
    fields = _fields(message)
    (score,) = struct.unpack("<f", _last(fields, 2, bytes(4)))
    kind = Kind(_last(fields, 3, Kind.NORMAL))
    return Piece(_last(fields, 1, b"").decode(), score, kind)


def _last(fields: Fields, number: int, default: Any) -> Any:
    return fields.get(number, [default])[-1]


def _fields(message: bytes) -> Fields:
    """Field number to all values that a protobuf message gives it."""
    fields: Fields = {}
    value: Any = None
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire_type = key & 7
        if wire_type in (_VARINT, _BYTES):
            value, at = _varint(message, at)
        if wire_type != _VARINT:
            length = _WIRE_TYPE_TO_LENGTH.get(wire_type) or value
            value, at = message[at : at + length], at + length
        fields.setdefault(key >> 3, []).append(value)
    return fields


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits per byte, the lowest first, and where it ends."""
    value = 0
    for shift in itertools.count(0, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return value, at
