"""Drop rules on single pairs.

A rule is a frozen dataclass that maps a pair to a `Drop`, or to None to keep the pair.
A recipe lists rules, those of this module and its own. The transform maps
PCollection[LotDecisions] to PCollection[LotDecisions].

>>> from pipeline.records import Pair
>>> fields = dict.fromkeys(Pair.__dataclass_fields__, 0)
>>> pair = Pair(**{**fields, "alt_text": "IMG_0042.JPG", "width": 400, "height": 90})
>>> FewWords(min_words=2)(pair)
Drop(reason=<DropReason.FEW_WORDS: 'few_words'>, value=1, threshold=2, detail='')
>>> BoilerplateAltText()(pair).detail
'file_name'
>>> SmallImage(min_side_px=64)(pair) is None
True
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable

import numpy as np

from pipeline.config.selection import DropRule
from pipeline.engine.run_folder import RunFolder
from pipeline.records import Drop, DropReason, Pair
from pipeline.selection.lot_decisions import LotDecisions, read_rows
from pipeline.storage.tables import from_table
from recipes.settings import Settings
from recipes.user_code import UserCodeError, call
from recipes.validation import expect, one_line, shown

# Alt text that is nothing but one of these says nothing about its image. A pattern must
# match the whole text, in any case. They match 381 of 22,261 alt texts of web pages,
# LAION-400M and Conceptual Captions (184 + 19 file names, 123 generic words, 22
# placeholders), and none of 100,329 human captions in 7 languages.
BOILERPLATE_PATTERNS = (
    r"(?P<file_name>\S+\.(?:jpe?g|png|gif|webp|bmp|tiff?|heic|svg))",
    r"(?P<camera_name>(?:img|dsc[fn]?|cimg)[-_ ]?\d{3,}\S*|p\d{7}|gopr\d{4}"
    r"|(?:_?mg|mvi|pxl|pano|pict|imag|sam|wp|vid)_\d{3,}\S*)",
    r"(?P<hash>(?=[a-f-]*\d)[0-9a-f-]{16,})",
    r"(?P<address>(?:https?://|www\.)\S+)",
    r"(?P<placeholder>(?:no|missing) (?:image|photo|picture|title|caption|description)"
    r"(?: available)?|untitled(?:[-_ ]?\d+)?|placeholder(?: image)?|image not found"
    r"|null|none|undefined|n/a|alt(?:[- ]text)?|spacer|(?:image is )?loading\W*"
    r"|nan|nat|na|nil|<na>|#n/a|\\n)",  # what pandas and databases make of nothing
    r"(?P<generic_word>(?:image|photo|picture|pic|img|thumbnail|logo|icon|banner"
    r"|avatar|screenshot|advertisement)s?|(?:user|profile|gallery|featured|main|cover)"
    r" (?:image|photo|picture|pic|avatar|icon)s?)",
    r"(?P<numbered>(?:(?:gallery )?(?:image|photo|picture|pic|img|slide|figure|fig"
    r"|thumbnail|screenshot|page)\.? ?(?:#|no\.?)? ?)?\d+(?: ?(?:of|/) ?\d+)?)",
    r"(?P<enlarge>(?:click|tap)(?: (?:here|on|the|this|image|photo|picture|thumbnail"
    r"|to|for|see|open|get|a))* (?:enlarge|zoom(?: in)?|larger|bigger|full[- ]?size"
    r"|expand|view)(?: (?:the|this|image|photo|picture|larger|view|version|size))*)",
    r"(?P<zoom>(?:(?:view|see|show|display) (?:(?:a|the) )?(?:larger|bigger"
    r"|full[- ]?size)|enlarge|zoom(?:[- ]?in)?)(?: (?:the|this))?"
    r"(?: (?:image|photo|picture|view))?)",
    r"(?P<for_sale>(?:now )?(?:for|on) sale[:!.,]* ?(?:[$€£] ?)?(?:\d[\d.,]*+ ?(?:k|m"
    r"|[$€£]|usd|eur|gbp)?(?: (?:obo|ono|or best offer|negotiable))?)?[!.]*)",
    r"(?P<price>(?:(?:only|just|from|now|price)[:!]? ?)?(?:(?:[$€£]|usd|eur|gbp) ?"
    r"\d[\d.,]*+ ?k?|\d[\d.,]*+ ?(?:k|[$€£]|usd|eur|gbp|euros?|dollars?))[!.]*)",
    r"(?P<shop>buy (?:it )?now|add to (?:cart|basket)|sold(?: out)?|out of stock"
    r"|price on request|best price|free shipping)",
    r"(?P<stock_photo>(?:royalty[- ]free )?(?:stock )?(?:photo(?:graphy|s)?|image(?:s)?"
    r"|vectors?|illustrations?)(?:[-: #]*\d+)?)",
    r"(?P<no_letters>[\W\d_]+)",
)

# Scripts written without spaces: kana, Han, Thai, Lao, Myanmar, Khmer.
SPACELESS = "\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
SPACELESS += "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff"
_WORD = re.compile(f"[{SPACELESS}]|[^\\s{SPACELESS}]+")


@dataclasses.dataclass(frozen=True)
class FewWords(Settings):
    """Drops alt text of fewer than `min_words` words, counted by `count_words`."""

    min_words: int

    def __post_init__(self) -> None:
        expect(self.min_words >= 1, "min_words", self.min_words, "at least 1")

    def __call__(self, pair: Pair) -> Drop | None:
        n_words = count_words(pair.alt_text)
        if n_words >= self.min_words:
            return None
        return Drop(DropReason.FEW_WORDS, n_words, self.min_words)


@dataclasses.dataclass(frozen=True)
class BoilerplateAltText(Settings):
    """Drops alt text that matches a pattern as a whole: file names, prices, counters.

    The detail of the decision is the name of the group around the pattern, if it has
    one. Case and surrounding white space are ignored.
    """

    # Regular expressions; the default's were measured on 22,261 alt texts.
    patterns: tuple[str, ...] = BOILERPLATE_PATTERNS

    def __post_init__(self) -> None:
        try:
            _any_of(self.patterns)
        except re.error as error:
            expect(False, "patterns", self.patterns, f"regular expressions ({error})")

    def __call__(self, pair: Pair) -> Drop | None:
        match = _any_of(self.patterns).fullmatch(pair.alt_text.strip())
        if match is None:
            return None
        detail = match.lastgroup or ""
        return Drop(DropReason.BOILERPLATE_ALT_TEXT, math.nan, math.nan, detail)


@dataclasses.dataclass(frozen=True)
class SmallImage(Settings):
    """Drops images whose short side has fewer than `min_side_px` pixels.

    If the size before the crawler's resizing was recorded, that size counts.
    """

    min_side_px: int

    def __post_init__(self) -> None:
        expect(self.min_side_px >= 1, "min_side_px", self.min_side_px, "at least 1")

    def __call__(self, pair: Pair) -> Drop | None:
        side_px = min(pair.original_sides_px)
        if side_px >= self.min_side_px:
            return None
        return Drop(DropReason.TINY_IMAGE, side_px, self.min_side_px)


@dataclasses.dataclass(frozen=True)
class ExtremeAspect(Settings):
    """Drops images whose long side is more than `max_aspect` times the short one.

    If the size before the crawler's resizing was recorded, that size counts.
    """

    max_aspect: float

    def __post_init__(self) -> None:
        expect(self.max_aspect >= 1, "max_aspect", self.max_aspect, "at least 1")

    def __call__(self, pair: Pair) -> Drop | None:
        sides_px = pair.original_sides_px
        aspect = max(sides_px) / min(sides_px)
        if aspect <= self.max_aspect:
            return None
        return Drop(DropReason.EXTREME_ASPECT, aspect, self.max_aspect)


def count_words(text: str) -> int:
    """The number of words of a text.

    Words are separated by white space. In scripts without spaces, such as Chinese, each
    character counts as a word.

    >>> count_words("a red square"), count_words("红色的 square")
    (3, 4)
    """
    return len(text.split()) if text.isascii() else len(_WORD.findall(text))


def first_drop(rules: Iterable[DropRule], pair: Pair) -> Drop | None:
    """The drop of the first rule that drops the pair; None if none does."""
    return next(filter(None, (_try(rule, pair) for rule in rules)), None)


class RuleError(RuntimeError):
    """A drop rule, of a user perhaps, that raised or returned something else."""


def _try(rule: DropRule, pair: Pair) -> Drop | None:
    try:
        drop = call(rule, pair)
    except UserCodeError as error:
        text = one_line(f"{type(error.raised).__name__}: {error.raised}", 200)
        raise RuleError(f"drop rule {shown(rule)} failed: {text}") from error.raised
    is_drop = isinstance(drop, Drop) and drop.reason in list(DropReason)
    if not is_drop and drop is not None:
        raise RuleError(
            f"drop rule {shown(rule)} gave {shown(drop)}: expected a Drop of a"
            " DropReason, or None"
        )
    return drop


@functools.lru_cache
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{p})" for p in patterns), re.IGNORECASE)


def apply_rules(
    decisions: LotDecisions, run: RunFolder, rules: tuple[DropRule, ...]
) -> LotDecisions:
    """Tries the rules on the droppable pairs of one lot."""
    rows = decisions.droppable_rows
    table = read_rows(run.pairs(decisions.lot.source), decisions, rows)
    found = [first_drop(rules, pair) for pair in from_table(table, Pair)]
    row_to_drop = {row: drop for row, drop in zip(rows, found, strict=True) if drop}
    for reason in sorted({drop.reason for drop in row_to_drop.values()}):
        drops = {r: drop for r, drop in row_to_drop.items() if drop.reason == reason}
        decisions = decisions.drop(
            np.array(list(drops)),
            reason,
            value=np.array([drop.value for drop in drops.values()]),
            threshold=np.array([drop.threshold for drop in drops.values()]),
            detail=[drop.detail for drop in drops.values()],
        )
    return decisions
