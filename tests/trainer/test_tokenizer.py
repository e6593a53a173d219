import pytest

from tests.support import served_store
from tests.support.tiny_export import VOCABULARY_SIZE
from trainer import tokenizer
from trainer.data.shards import Shards


def test_the_same_texts_give_the_same_bytes(vocabulary, export):
    texts = list(tokenizer.shard_texts(Shards(export)))
    assert tokenizer.train_vocabulary(texts, VOCABULARY_SIZE) == vocabulary.read_bytes()


def test_alt_texts_and_all_captions_are_learned_from(export):
    texts = list(tokenizer.shard_texts(Shards(export)))
    assert len(texts) == 24 * 4
    assert texts[:2] == ["photo 0 of something red", "a red picture, number 0"]


def test_texts_in_a_store_take_one_request_for_many_samples(export):
    expected = list(tokenizer.shard_texts(Shards(export)))
    with served_store.serve("s3") as server:
        served_store.upload(server, export, "shards")
        shards = Shards("s3://bucket/shards")
        server.forget_requests()
        assert list(tokenizer.shard_texts(shards)) == expected
        n_shards = len({shard.name for shard in shards._files})
        assert server.counts() == {"get": 2 * n_shards}  # an index, and the records


def test_a_corpus_that_is_too_small_is_told_the_largest_size():
    with pytest.raises(ValueError, match=r"=32000: .* at most \d+ pieces"):
        tokenizer.train_vocabulary(["a few words", "and a few more"], 32_000)


def test_a_size_below_the_number_of_letters_is_told_that_number():
    with pytest.raises(ValueError, match=r"=3: expected more than \d+"):
        tokenizer.train_vocabulary(["a few words", "and a few more"], 3)


@pytest.mark.parametrize("size", ["-3", "0", "2"])
def test_a_size_that_no_vocabulary_has_is_refused_first(tmp_path, capsys, size):
    arguments = ["--data", str(tmp_path / "none"), "--output", str(tmp_path / "x")]
    with pytest.raises(SystemExit) as exit_info:
        tokenizer.main([*arguments, "--vocabulary-size", size])
    assert exit_info.value.code == 2
    expected = f"error: --vocabulary-size={size}: expected at least 3\n"
    assert capsys.readouterr().err == expected


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys):
    arguments = ["--data", str(tmp_path / "none"), "--output", str(tmp_path / "x")]
    with pytest.raises(SystemExit) as exit_info:
        tokenizer.main(arguments)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
