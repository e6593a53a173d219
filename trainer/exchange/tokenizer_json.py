"""A sentencepiece model as the `tokenizer.json` of Hugging Face's tokenizers.

transformers could read the sentencepiece model itself, but needs a protobuf of the
right version for that. This file it always reads, and so does what is not Python.
"""

import base64
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import sentencepiece

_SPACE = "\u2581"  # sentencepiece's mark of a word's beginning
# Field numbers of sentencepiece_model.proto.
_NORMALIZER_SPEC, _CHARSMAP = 3, 2
# Bytes of a field by its wire type; the others tell their own length.
_WIRE_TYPE_TO_LENGTH = {1: 8, 5: 4}
_VARINT, _BYTES = 0, 2


def of_model(path: pathlib.Path) -> dict[str, Any]:
    """The JSON of a byte pair encoding whose texts are lower-cased first."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    piece_to_id = {piece: number for number, piece in enumerate(pieces)}
    specials = (processor.pad_id(), processor.unk_id())
    words = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, pieces[number]) for number in specials],
        "normalizer": _sequence("normalizers", *_normalizers(path.read_bytes())),
        "pre_tokenizer": _sequence(
            "pretokenizers", {"type": "WhitespaceSplit"}, words | {"split": True}
        ),
        "post_processor": None,
        "decoder": _sequence(
            "decoders",
            words | {"split": True},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[processor.unk_id()],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": piece_to_id,
            "merges": list(_merges(piece_to_id)),
        },
    }


def _added(number: int, piece: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {
        "id": number,
        "content": piece,
        "normalized": False,
        "special": True,
    } | flags


def _sequence(name: str, *parts: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: list(parts)}


def _normalizers(model: bytes) -> Iterator[dict[str, Any]]:
    yield {"type": "Lowercase"}
    if charsmap := _field(_field(model, _NORMALIZER_SPEC), _CHARSMAP):
        encoded = base64.b64encode(charsmap).decode()
        yield {"type": "Precompiled", "precompiled_charsmap": encoded}


def _merges(piece_to_id: Mapping[str, int]) -> Iterator[list[str]]:
    """Pairs of pieces that make another, the earliest one first.

    Sentencepiece numbers pieces in the order in which it merges them.
    """
    for piece in piece_to_id:
        for end in range(1, len(piece)):
            pair = [piece[:end], piece[end:]]
            if all(part in piece_to_id for part in pair):
                yield pair


def _field(message: bytes, number: int) -> bytes:
    """A field of bytes of a protobuf message; b"" if it is not there."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire_type = key & 7
        if wire_type == _VARINT:
            _, at = _varint(message, at)
            continue
        length = _WIRE_TYPE_TO_LENGTH.get(wire_type, 0)
        if wire_type == _BYTES:
            length, at = _varint(message, at)
            if key >> 3 == number:
                return message[at : at + length]
        at += length
    return b""


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in itertools.count(0, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return value, at
