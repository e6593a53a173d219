import dataclasses
import math
import time

import pytest

from pipeline.config.selection import SelectionConfig
from pipeline.records import Drop, DropReason, Pair
from pipeline.selection import rules as filters
from tests.support.score_tables import Row, after_step, make_run

NAN = math.nan


def pair(alt_text: str = "", width: int = 100, height: int = 100) -> Pair:
    return Pair(b"", "", "", alt_text, b"", "jpeg", width, height, 1, 0, "")


# Drop rules


def test_text_of_fewer_words_is_dropped_with_their_number():
    rule = filters.FewWords(min_words=3)
    assert rule(pair("red circle")) == Drop(DropReason.FEW_WORDS, 2, 3)
    assert rule(pair(" ")) == Drop(DropReason.FEW_WORDS, 0, 3)
    assert rule(pair("a red circle")) is None


@pytest.mark.parametrize(
    ("text", "n_words"),
    [
        ("a red  circle\n", 3),
        ("ein rotes Fahrrad fährt", 4),
        ("一只白色的狗", 6),
        ("白い dog と2匹", 6),
        ("красный круг", 2),
        ("빨간 원", 2),
        ("", 0),
    ],
)
def test_a_character_of_a_script_without_spaces_counts_as_a_word(text, n_words):
    assert filters.count_words(text) == n_words


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("file_name", ["IMG_2031.jpg", "P1610212.JPG", " koala-rescue.jpeg\n"]),
        ("camera_name", ["IMG_2031", "DSC00412", "DSCN1234", "img 0001", "P1610212"]),
        ("camera_name", ["_MG_2953", "PXL_20210101_120000", "GOPR0042"]),
        ("no_letters", ["...", ":-)", "✓", "12/03/2019", "#1"]),
        ("hash", ["024a58a76d964b3f80e7ecbb19fbc020", "04764069-41b3-48d3-be5a-4cde"]),
        ("address", ["www.xinsurance.com", "http://example.org/a?b=c"]),
        ("placeholder", ["untitled", "Untitled-3", "No image available", "Loading…"]),
        ("generic_word", ["Logo", "User avatar", "thumbnail", "gallery image"]),
        ("numbered", ["image 3 of 8", "Photo #4", "slide 2/9", "3 of 8", "10"]),
        ("enlarge", ["click to enlarge", "Click here to view larger image"]),
        ("enlarge", ["Click on image to zoom", "tap to see full size"]),
        ("zoom", ["Zoom-In", "enlarge this image", "View larger", "view full-size"]),
        ("for_sale", ["for sale 30k", "For Sale!", "for sale: $30,000 OBO"]),
        ("price", ["$29.99", "only €5", "30k", "1.200 EUR", "Price: $ 4"]),
        ("shop", ["buy it now", "Sold out", "add to cart"]),
        ("stock_photo", ["stock photo", "Royalty-Free Stock Photo #123", "photo 2"]),
    ],
)
def test_boilerplate_is_dropped_with_the_name_of_its_pattern(name, texts):
    reason = DropReason.BOILERPLATE_ALT_TEXT
    for text in texts:
        drop = filters.BoilerplateAltText()(pair(text))
        assert drop is not None, text
        assert (drop.reason, math.isnan(drop.value)) == (reason, True)
        # A numbered photo is a stock photo as well: the first pattern names it.
        assert drop.detail == name or (text, drop.detail) == ("photo 2", "numbered")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "seafood for sale outside a restaurant on night market",
        "2000 BMW Z8 for sale 100745865",
        "a lucky dog for sale",
        "whole lobster + a drink for $29.99",
        "homes for sale",
        "Tomatoes Stock Photo",
        "photo of a dog",
        "3 images of cats",
        "logo of a bakery",
        "Pony Love.jpg Canvas Lunch Bag",
        "Volkswagen ID.3",
        "actor strolls in a pair of boots - click to steal her style !",
        "zoom in on a green mountain",
        "Zoom iQ5 Professional Stereo Microphone Review",
        "image may contain : person , on stage",
        "loading coal in the port",
        "an untitled painting",
        "写真展の入り口",
        "Sam 2019",
        "effaced facade",
        "beach",
    ],
)
def test_meaningful_text_is_not_boilerplate(text):
    assert filters.BoilerplateAltText()(pair(text)) is None


@pytest.mark.parametrize(
    "lot", ["1", "1.", "1 ", "$1,", "a-", "click on ", "image ", "f", ".jpg", "-", "("]
)
def test_no_boilerplate_pattern_takes_quadratic_time(lot):
    text = lot * (65536 // len(lot)) + " x"
    start_s = time.perf_counter()
    filters.BoilerplateAltText()(pair(text))
    assert time.perf_counter() - start_s < 5


def test_patterns_can_be_replaced_and_need_no_name():
    rule = filters.BoilerplateAltText(patterns=(r"foto \d+", r"(?P<shop>sofort .*)"))
    assert rule(pair("FOTO 12")).detail == ""
    assert rule(pair("Sofort kaufen")).detail == "shop"
    assert rule(pair("IMG_2031.jpg")) is None


def test_small_image_is_judged_by_its_short_side():
    rule = filters.SmallImage(min_side_px=64)
    assert rule(pair(width=640, height=63)) == Drop(DropReason.TINY_IMAGE, 63, 64)
    assert rule(pair(width=64, height=64)) is None


def test_extreme_aspect_is_judged_either_way_up():
    rule = filters.ExtremeAspect(max_aspect=3)
    dropped = Drop(DropReason.EXTREME_ASPECT, 4, 3)
    assert rule(pair(width=400, height=100)) == dropped
    assert rule(pair(width=100, height=400)) == dropped
    assert rule(pair(width=300, height=100)) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: filters.FewWords(0), "min_words=0: expected at least 1"),
        (lambda: filters.SmallImage(0), "min_side_px=0: expected at least 1"),
        (lambda: filters.ExtremeAspect(0.5), "max_aspect=0.5: expected at least 1"),
        (
            lambda: filters.ExtremeAspect(NAN),
            "max_aspect=nan: expected float, a finite",
        ),
        (lambda: filters.BoilerplateAltText(("(",)), "expected regular expressions"),
    ],
)
def test_impossible_bounds_are_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_first_rule_that_drops_names_the_reason(tmp_path):
    rules = (filters.SmallImage(10), filters.FewWords(2))
    rows = [Row("one", size=(9, 9)), Row("one"), Row("one two", size=(9, 9)), Row()]
    run = make_run(str(tmp_path), SelectionConfig(), {"web/1": rows})
    decided = after_step(run, lambda v: filters.apply_rules(v, run, rules))
    assert [(d.outcome, d.value, d.threshold) for d in decided] == [
        ("tiny_image", 9, 10),
        ("few_words", 1, 2),
        ("tiny_image", 9, 10),
        ("kept", None, None),
    ]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Gives what it is told to."""

    drop: object

    def __call__(self, pair: Pair) -> object:
        return self.drop


@pytest.mark.parametrize("drop", [True, "few_words", Drop("long", 1, 2), (1, 2), 0])
def test_a_rule_that_gives_something_else_is_named(drop):
    message = r"drop rule Rule\(.* gave .*: expected a Drop of a DropReason, or None"
    with pytest.raises(filters.RuleError, match=message):
        filters.first_drop([Rule(drop)], pair())


@pytest.mark.parametrize("rule", [lambda pair: pair.words, lambda: None, Rule])
def test_a_rule_that_fails_is_named_with_its_error(rule):
    rules = [rule] if rule is not Rule else [filters.FewWords(1), lambda pair: {}["a"]]
    with pytest.raises(filters.RuleError, match=r"drop rule .* failed: \w+Error: "):
        filters.first_drop(rules, pair("a"))


@pytest.mark.parametrize("keep_all", [[], ["web"]])
def test_rules_do_not_see_unreadable_pairs_nor_sources_to_keep_whole(
    tmp_path, keep_all
):
    rows = [Row("x", error="truncated"), Row("x")]
    run = make_run(str(tmp_path), SelectionConfig(), {"web/1": rows}, keep_all=keep_all)
    rules = (filters.FewWords(2),)
    unreadable, other = after_step(run, lambda v: filters.apply_rules(v, run, rules))
    assert (unreadable.outcome, unreadable.detail) == ("unreadable", "truncated")
    assert other.outcome == ("kept" if keep_all else "few_words")
