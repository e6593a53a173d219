"""A sentencepiece model as the `tokenizer.json` of Hugging Face's tokenizers.

transformers can read the sentencepiece model itself, but needs the right version of
protobuf for that. It always reads this file, and so do programs that are not Python.
Ids are those of the sentencepiece model, or the model is refused.
"""

import itertools
import pathlib
import re
from collections.abc import Iterator

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from trainer.exchange.sentencepiece_file import Algorithm, Kind, SentencePieceFile
from trainer.exchange.tokenizer_probe import TEXTS

_SPACE = "\u2581"  # sentencepiece's mark of a space
# No text has it, no normalizer maps it, and nothing joins over it.
_SEPARATOR = "\ufff0"

# What `str.lower` does and `Lowercase`, which sees one letter at a time, does not.
_CASED = r"[\p{Cased}&&[^\p{Case_Ignorable}]]"
_FINAL_SIGMA = rf"{_CASED}\p{{Case_Ignorable}}*\KΣ(?!\p{{Case_Ignorable}}*{_CASED})"
# Marks that form one character with a letter before them.
_COMPOSING = (
    r"\u0300-\u0314\u031b\u0323-\u0331\u0338\u0342\u0345\u0653-\u0655\u093c\u09be"
    r"\u09d7\u0b3e\u0b56\u0b57\u0bbe\u0bd7\u0c56\u0cc2\u0cd5\u0cd6\u0d3e\u0d57\u0dcf"
    r"\u0dca\u0ddf\u102e\u1b35\u3099\u309a"
)
_NORMALIZERS = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity", "")
_SAMPLE_PIECES = 40  # in a text of the probe


def convert_tokenizer(path: pathlib.Path) -> str:
    """Returns the JSON of a tokenizer that lower-cases, then does what the model does.

    Raises ValueError for a model whose ids tokenizers cannot reproduce.
    """
    file = SentencePieceFile.read(path)
    if problem := _find_problem(file):
        raise _error(path, problem)
    tokenizer = Tokenizer(_model(file))
    tokenizer.normalizer = normalizers.Sequence(list(_normalizers(file)))
    if file.model_type is Algorithm.UNIGRAM:
        tokenizer.pre_tokenizer = _split_in_names(file)
    scheme = "always" if file.add_dummy_prefix else "never"
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Metaspace(_SPACE, prepend_scheme=scheme),
            decoders.ByteFallback(),
            decoders.Fuse(),
        ]
    )
    _check_ids(path, tokenizer, file)
    return tokenizer.to_str(pretty=True) + "\n"


def _find_problem(file: SentencePieceFile) -> str:
    """A feature that tokenizers lacks; "" if there is none."""
    kinds = {piece.kind for piece in file.pieces}
    is_unigram = file.model_type is Algorithm.UNIGRAM
    if file.model_type is Algorithm.WORD:
        return "is of whole words"
    if file.normalizer not in _NORMALIZERS:
        return f"has a normalizer of its own, {file.normalizer!r}"
    if not file.escape_whitespaces or file.treat_whitespace_as_suffix:
        return "has no mark of a space before a word"
    if Kind.USER_DEFINED in kinds:
        symbol = next(p.text for p in file.pieces if p.kind is Kind.USER_DEFINED)
        return f"has symbols of its own, such as {symbol!r}"
    if is_unigram and not all(_name_parts(name)[0] for name in _names(file)):
        return "has control symbols that are words"
    return "has unused pieces" if Kind.UNUSED in kinds else ""


def _model(file: SentencePieceFile) -> models.Model:
    kinds = [piece.kind for piece in file.pieces]
    unknown = kinds.index(Kind.UNKNOWN)
    if file.model_type is Algorithm.UNIGRAM:
        vocabulary = [(piece.text, piece.score) for piece in file.pieces]
        return models.Unigram(vocabulary, unknown, file.byte_fallback)
    return models.BPE(
        vocab={piece.text: number for number, piece in enumerate(file.pieces)},
        merges=list(_merges(file)),
        unk_token=file.pieces[unknown].text,
        fuse_unk=True,
        byte_fallback=file.byte_fallback,
    )


def _merges(file: SentencePieceFile) -> Iterator[tuple[str, str]]:
    """Pairs of pieces that make another, that of the highest score first.

    A model of characters is one without any.
    """
    if file.model_type is Algorithm.CHAR:
        return
    normal = [piece for piece in file.pieces if piece.kind is Kind.NORMAL]
    known = {piece.text for piece in normal}
    for text, _, _ in sorted(normal, key=lambda piece: -piece.score):
        for end in range(1, len(text)):
            if text[:end] in known and text[end:] in known:
                yield text[:end], text[end:]


def _normalizers(file: SentencePieceFile) -> Iterator[normalizers.Normalizer]:
    yield _replace(_FINAL_SIGMA, "ς")
    yield normalizers.Lowercase()
    if file.precompiled_charsmap:
        yield from _character_map(file.precompiled_charsmap)
    if file.remove_extra_whitespaces:
        yield _replace(rf"\A +|[ {_SPACE}]+\z|(?<= ) +", "")
    yield normalizers.Replace(" ", _SPACE)
    if file.add_dummy_prefix:
        yield normalizers.Prepend(_SPACE)


def _character_map(charsmap: bytes) -> Iterator[normalizers.Normalizer]:
    """Sentencepiece's map of characters and of letters with marks.

    `Precompiled` drops marks behind a character that it maps, and does not look at
    clusters of more than five bytes: so it gets one character at a time, and NFC joins
    letters and marks afterward. Marks that join nothing keep their order.
    """
    # An insertion before a whole text would break the tokenizer's offsets.
    yield _replace(r"(?<=[\s\S])(?=[\p{M}\n\u200c\u200d\uff9e\uff9f])", _SEPARATOR)
    yield normalizers.Precompiled(charsmap)
    yield _replace(rf"{_SEPARATOR}(?=[{_COMPOSING}])", "")
    yield normalizers.NFC()
    yield normalizers.Replace(_SEPARATOR, "")


def _replace(pattern: str, content: str) -> normalizers.Normalizer:
    return normalizers.Replace(Regex(pattern), content)


def _split_in_names(file: SentencePieceFile) -> pre_tokenizers.PreTokenizer:
    """Cuts what a text spells as `<pad>`, which `Unigram` would take for that token."""
    parts = [map(re.escape, _name_parts(name)) for name in _names(file)]
    cuts = (f"(?<={mark})(?={rest})" for mark, rest in parts)
    return pre_tokenizers.Split(Regex("|".join(cuts)), "isolated")


def _names(file: SentencePieceFile) -> list[str]:
    """The names of tokens that no text contains."""
    return [piece.text for piece in file.pieces if piece.kind is not Kind.NORMAL]


def _name_parts(name: str) -> tuple[str, str]:
    """The brackets before a name, and what follows."""
    rest = name.lstrip("</[(|")
    return name.removesuffix(rest), rest


def _check_ids(
    path: pathlib.Path, tokenizer: Tokenizer, file: SentencePieceFile
) -> None:
    """Raises ValueError if a text of the probe gets other ids than in training."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in itertools.chain(TEXTS, _probe_texts(file)):
        expected = processor.encode(text.lower())
        if tokenizer.encode(text).ids != expected:
            raise _error(path, f"would have other ids for {text[:60]!r}")


def _probe_texts(file: SentencePieceFile) -> Iterator[str]:
    """Texts with every piece, next to its neighbors and next to others."""
    pieces = [p.text.replace(_SPACE, " ") for p in file.pieces if p.kind is Kind.NORMAL]
    step = 1 + len(pieces) // _SAMPLE_PIECES
    for start in range(0, len(pieces), _SAMPLE_PIECES):
        yield "".join(pieces[start : start + _SAMPLE_PIECES])
    for start in range(step):
        yield "".join(pieces[start::step])


def _error(path: pathlib.Path, problem: str) -> ValueError:
    return ValueError(
        f"{path}: this vocabulary {problem}; expected one that tokenizer.json can hold,"
        " or --format scenic or pytorch"
    )
