import pytest
import sentencepiece

from trainer.data.text_tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenize(vocabulary):
    return Tokenizer(vocabulary, max_tokens=6)


def test_rows_are_padded_with_zeros_and_cut_on_the_right(tokenize):
    short, empty, long = tokenize(["red", "", "red " * 20])
    n_valid = (short != 0).sum()
    assert 0 < n_valid < 6
    assert (short[:n_valid] != 0).all()
    assert empty.tolist() == [0] * 6
    assert (long != 0).all()
    assert long[:n_valid].tolist() == short[:n_valid].tolist()


def test_text_is_lower_cased(tokenize):
    upper, lower = tokenize(["A RED Picture", "a red picture"])
    assert upper.tolist() == lower.tolist()
    assert 1 not in lower


def test_unknown_letters_have_id_1_and_nothing_begins_or_ends_a_text(tokenize):
    (row,) = tokenize(["\N{SNOWMAN}"])
    assert row.tolist()[1:] == [1, 0, 0, 0, 0]  # behind the mark of a new word


def test_padding_cannot_be_written_in_a_text(tokenize):
    (row,) = tokenize(["<pad>"])
    assert row[0] != 0


def test_a_file_that_is_no_model_is_named(tmp_path):
    path = tmp_path / "x.model"
    for contents in (None, b"", b"something else"):
        if contents is not None:
            path.write_bytes(contents)
        with pytest.raises(ValueError, match=r"x\.model: expected a sentencepiece"):
            Tokenizer(path, 8)


def test_a_model_with_other_conventions_is_refused(tmp_path):
    path = tmp_path / "other.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a few words"] * 9),
            model_writer=file,
            vocab_size=16,
            model_type="bpe",
            minloglevel=2,
        )
    with pytest.raises(ValueError, match=r"unknown = \(-1, 0\), expected \(0, 1\)"):
        Tokenizer(path, 8)
