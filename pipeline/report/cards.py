"""What the page says of one pair, in words.

In: examined pairs. Out: cards of plain texts: cut, without hidden characters, and
escaped by the template.
"""

import dataclasses
import math

from pipeline import records
from pipeline.records import Decision, DropReason
from pipeline.report.pair_facts import Examined
from recipes.safe_text import visible

# Reasons that are not here, such as new ones, are shown by their name alone.
_SAYS = {
    DropReason.OPT_OUT: "The owner asks that the image is not used.",
    DropReason.DROP_LIST: "An entry of the drop list names the pair.",
    DropReason.FEW_WORDS: "The alt text has too few words to describe an image.",
    DropReason.BOILERPLATE_ALT_TEXT: "File names, placeholders, prices: the alt text "
    "says nothing of the image. The detail is the pattern that it matches.",
    DropReason.TINY_IMAGE: "The short side of the image has too few pixels.",
    DropReason.EXTREME_ASPECT: "The image is too long for its height, or the reverse.",
    DropReason.LANGUAGE: "The alt text is in none of the languages to keep; the value "
    "is the probability of the language that was detected.",
    DropReason.LOW_ALIGNMENT: "The alt text does not describe the image, says the "
    "encoder: their cosine is below the threshold.",
    DropReason.EXACT_DUPLICATE: "Another pair with the same image stays: the detail is "
    "its id.",
    DropReason.NEAR_EVALUATION: "The image is too similar to one that models are "
    "evaluated on.",
    DropReason.FAR_FROM_SEEDS: "The image resembles no curated seed.",
}
_OTHER_SAYS = {records.UNREADABLE: "The pair cannot be read; the detail is the error."}


@dataclasses.dataclass(frozen=True)
class Card:
    """One pair: its text, what was decided, and what else is known."""

    key: str
    text: str
    verdict: str
    facts: tuple[tuple[str, str], ...]


def title_of(outcome: str) -> str:
    """The name of an outcome in words."""
    return outcome.replace("_", " ")


def says(outcome: str) -> str:
    """What an outcome means; "" if nothing is known of it."""
    known = {str(reason): text for reason, text in _SAYS.items()} | _OTHER_SAYS
    return known.get(outcome, "")


def card(one: Examined, verdict: str) -> Card:
    """A card with everything that is known of a pair."""
    pair = one.pair
    facts = [("sample id", pair.sample_id.hex()), ("source", one.unit.source.name)]
    facts += [("key", pair.key), ("address", pair.url), ("detail", one.decision.detail)]
    facts += [("error", pair.error), ("seeds", ", ".join(one.decision.seeds))]
    if not pair.error:
        size = f"{pair.width} x {pair.height} {pair.image_format}"
        language = f"{one.language.code or '?'} {number(one.language.probability)}"
        facts += [("image", size), ("words", str(one.n_words)), ("language", language)]
        facts += [("alignment score", number(one.alignment_score))]
    for name, match in (("nearest evaluation", one.evaluation), ("seed", one.seed)):
        if match is not None and not pair.error:
            facts.append((name, f"{match.name} {number(match.similarity)}"))
    shown = [(name, visible(value)) for name, value in facts if value]
    return Card(one.place.key, visible(pair.alt_text), visible(verdict), tuple(shown))


def verdict_of(decision: Decision) -> str:
    """The value that failed, its bound, and the detail."""
    parts = [decision.detail] if decision.detail else []
    if decision.value is not None and not math.isnan(decision.value):
        value = number(decision.value)
        bound = decision.threshold
        parts.insert(0, value if bound is None else f"{value}, bound {number(bound)}")
    return " · ".join(parts)


def number(value: float | None) -> str:
    """Four digits at most, none that say nothing."""
    if value is None or math.isnan(value):
        return "none"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
