import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.selection.concepts import Concepts

LIST = Concepts(["dog", "hot dog", "New York City", "red fox", "red", "狗", "白色的狗"])


def names(text: str, concepts: Concepts = LIST) -> list[str]:
    return [concepts.names[number] for number in concepts.find(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog", ["dog"]),
        ("Hot DOG!", ["dog", "hot dog"]),
        ("hot, dog", ["dog", "hot dog"]),
        ("hotdogs and underdogs", []),
        ("a red red fox", ["red fox", "red"]),
        ("new york", []),
        ("new new york city", ["New York City"]),
        ("red_fox", ["red fox", "red"]),
        ("一只白色的狗", ["狗", "白色的狗"]),
        ("", []),
        ("?!", []),
    ],
)
def test_concepts_are_found_word_for_word(text, expected):
    assert names(text) == expected


WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(" ".join)


@settings(deadline=None, derandomize=True)
@given(listed=st.lists(WORDS, max_size=8), text=WORDS)
def test_what_is_found_is_what_a_search_for_each_concept_finds(listed, text):
    concepts = Concepts(listed)
    expected = [name for name in dict.fromkeys(listed) if f" {name} " in f" {text} "]
    assert names(text, concepts) == expected


def test_a_long_text_is_searched_in_linear_time():
    concepts = Concepts(["a", "a a", "a a b"])
    text = "a " * 30_000
    assert names(text, concepts) == ["a", "a a"]


def test_the_order_of_a_list_changes_no_match():
    listed = ["red", "red fox", "fox", "red fox cub"]
    for seed in range(4):
        shuffled = random.Random(seed).sample(listed, len(listed))
        found = names("a red fox cub", Concepts(shuffled))
        assert sorted(found) == sorted(listed)


def test_a_file_has_one_concept_a_line_and_repeats_count_once(tmp_path):
    path = tmp_path / "concepts.txt"
    path.write_bytes("\ufeffdog\r\n\nDOG.\nred fox\n".encode())
    assert Concepts.load(str(path)).names == ["dog", "red fox"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"dog\n!!\n", r"c\.txt:2: '!!': expected a word"),
        (b"\n", "concepts='.*': expected at least one line"),
        (b"\xff", "expected UTF-8"),
    ],
)
def test_an_empty_list_is_an_error(tmp_path, data, message):
    (tmp_path / "c.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        Concepts.load(str(tmp_path / "c.txt"))
