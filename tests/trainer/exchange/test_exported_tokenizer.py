"""Vocabularies of all kinds: tokenizer.json has the ids of training, or is refused."""

import functools
import io
import unicodedata

import pytest
import sentencepiece
from tokenizers import Tokenizer

from trainer.exchange import tokenizer_json
from trainer.exchange.sentencepiece_file import Algorithm, Kind, SentencePieceFile
from trainer.exchange.tokenizer_probe import TEXTS

SENTENCE = (
    "a red circle left of two green triangles , and a dog . blue squares stand above"
    " the yellow star beside an orange dog near four small rings in a large photo"
)
CORPUS = [f"{SENTENCE[i:]} {SENTENCE[:i]}" for i in range(0, len(SENTENCE), 5)]
EVERY_SCRIPT = [text for text in TEXTS if text.strip()]
KINDS = {
    "bpe": {},
    "bpe of bytes": {"byte_fallback": True, "vocab_size": 330},
    "bpe of every script": {
        "corpus": EVERY_SCRIPT,
        "vocab_size": 520,
    },
    "bpe without prefix": {"add_dummy_prefix": False},
    "bpe across spaces": {"split_by_whitespace": False},
    "bpe with begin and end": {"bos_id": 2, "eos_id": 3},
    "bpe with control symbols": {"control_symbols": ["<c>", "dog"]},
    "bpe with names of its own": {"pad_piece": "[PAD]", "unk_piece": "[UNK]"},
    "bpe as it is written": {"normalization_rule_name": "identity"},
    "bpe with all spaces": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "bpe nfkc": {"normalization_rule_name": "nfkc"},
    "bpe folded": {"normalization_rule_name": "nmt_nfkc_cf"},
    "unigram": {"model_type": "unigram"},
    "unigram of bytes": {
        "model_type": "unigram",
        "byte_fallback": True,
        "vocab_size": 330,
    },
    "unigram of every script": {
        "model_type": "unigram",
        "corpus": EVERY_SCRIPT,
        "vocab_size": 500,
    },
    "unigram without prefix": {"model_type": "unigram", "add_dummy_prefix": False},
    "unigram with begin and end": {"model_type": "unigram", "bos_id": 2, "eos_id": 3},
    "unigram folded": {
        "model_type": "unigram",
        "normalization_rule_name": "nfkc_cf",
    },
    "characters": {"model_type": "char", "vocab_size": 28},
}
DEFAULTS = {
    "model_type": "bpe",
    "vocab_size": 60,
    "hard_vocab_limit": False,
    "pad_id": 0,
    "unk_id": 1,
    "bos_id": -1,
    "eos_id": -1,
    "num_threads": 1,
    "minloglevel": 2,
}
REFUSED = {
    "word": ({"model_type": "word", "vocab_size": 20}, "is of whole words"),
    "symbols": ({"user_defined_symbols": ["dog", "<url>"]}, "symbols of its own"),
    "suffix": ({"treat_whitespace_as_suffix": True}, "no mark of a space before"),
    "control words": (
        {"model_type": "unigram", "control_symbols": ["dog"]},
        "control symbols that are words",
    ),
    "deleted and kept": ({"remove_extra_whitespaces": False}, "would have other ids"),
}


def trained(path, corpus=CORPUS, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.lower() for text in corpus]),
        model_writer=model,
        **(DEFAULTS | options),
    )
    path.write_bytes(model.getvalue())
    return path


def assert_same_ids(path, texts):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    exported = Tokenizer.from_str(tokenizer_json.convert_tokenizer(path))
    for text in texts:
        assert exported.encode(text).ids == processor.encode(text.lower()), text


@functools.cache
def odd_texts():
    """Every mark that begins, ends and follows; every other range of Unicode."""
    marks = "".join(chr(c) for c in range(0x300, 0x370))
    blocks = ["".join(map(chr, range(i, i + 24))) for i in range(32, 0x3200, 24)]
    syllables = "".join(map(chr, range(0xAC00, 0xD7A4, 97)))
    return [
        *(mark + "red" + mark for mark in marks),
        *(unicodedata.normalize("NFC", block) for block in blocks),
        *(unicodedata.normalize("NFD", x) for x in (*map(chr, range(0xC0, 0x250)),)),
        *(unicodedata.normalize("NFD", x) for x in map(chr, range(0x1E00, 0x2000))),
        syllables,
        unicodedata.normalize("NFD", syllables),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_training(tmp_path, kind):
    path = trained(tmp_path / "x.model", **KINDS[kind])
    assert_same_ids(path, [*TEXTS, *CORPUS])


@pytest.mark.parametrize("kind", ["bpe of every script", "unigram of every script"])
def test_ids_of_odd_texts_are_those_of_training(tmp_path, kind):
    assert_same_ids(trained(tmp_path / "x.model", **KINDS[kind]), odd_texts())


@pytest.mark.parametrize("kind", REFUSED)
def test_what_tokenizers_cannot_do_is_refused(tmp_path, kind):
    options, message = REFUSED[kind]
    path = trained(tmp_path / "x.model", **options)
    with pytest.raises(ValueError, match=f"x.model: this vocabulary .*{message}"):
        tokenizer_json.convert_tokenizer(path)


def test_rules_of_its_own_are_refused(tmp_path):
    (tmp_path / "rules.tsv").write_text("61 62\t63\n")
    rules = {"normalization_rule_tsv": str(tmp_path / "rules.tsv")}
    path = trained(tmp_path / "x.model", **rules)
    with pytest.raises(ValueError, match="a normalizer of its own, 'user_defined'"):
        tokenizer_json.convert_tokenizer(path)


def test_a_file_says_what_sentencepiece_says(tmp_path):
    path = trained(tmp_path / "x.model", **KINDS["unigram of bytes"])
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    file = SentencePieceFile.read(path)
    assert file.model_type is Algorithm.UNIGRAM
    assert (file.byte_fallback, file.add_dummy_prefix) == (True, True)
    assert file.normalizer == "nmt_nfkc"
    assert len(file.precompiled_charsmap) > 100_000
    assert len(file.pieces) == processor.vocab_size()
    for number, piece in enumerate(file.pieces):
        assert piece.text == processor.id_to_piece(number)
        assert piece.score == pytest.approx(processor.get_score(number))
        assert (piece.kind is Kind.CONTROL) == processor.is_control(number)
        assert (piece.kind is Kind.BYTE) == processor.is_byte(number)
