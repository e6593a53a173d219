from pathlib import Path

import hypothesis
import hypothesis.strategies as st
from transformers import AutoTokenizer

from tests.support.tiny_checkpoints import TEXTS, paligemma_tokenizer, siglip_tokenizer
from tools.tiny_tokenizers import train_bpe

SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>"]


@hypothesis.given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text: str):
    hypothesis.assume("▁" not in text and "<" not in text)
    tokenizer = paligemma_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert 3 not in ids
    assert tokenizer.decode(ids) == text


def test_specials_come_first_and_paligemmas_tokens_last():
    tokenizer = paligemma_tokenizer()
    assert tokenizer.convert_tokens_to_ids(SPECIALS) == [0, 1, 2, 3]
    n = len(tokenizer)
    ends = tokenizer.convert_tokens_to_ids(["<image>", "<loc0000>", "<seg127>"])
    assert ends == [n - 1153, n - 1152, n - 1]


def test_newline_is_a_token_of_its_own():
    ids = paligemma_tokenizer()("caption en\n", add_special_tokens=False)["input_ids"]
    assert paligemma_tokenizer().convert_ids_to_tokens(ids)[-1] == "\n"


def test_pieces_do_not_span_words():
    vocab, _ = train_bpe(TEXTS * 9, n_tokens=400)
    assert "▁circle" in vocab
    assert not [piece for piece in vocab if "▁" in piece[1:]]


def test_saved_tokenizers_load_as_they_were(tmp_path: Path):
    for tokenizer in (siglip_tokenizer(), paligemma_tokenizer()):
        tokenizer.save_pretrained(tmp_path / type(tokenizer).__name__)
        loaded = AutoTokenizer.from_pretrained(tmp_path / type(tokenizer).__name__)
        assert type(loaded) is type(tokenizer)
        text = "A red Circle<loc0003>\n"
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_siglip_texts_are_lower_cased_and_ended():
    upper, lower = siglip_tokenizer()(["A RED circle", "a red circle"])["input_ids"]
    assert upper == lower
    assert upper[-1] == 1
