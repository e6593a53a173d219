"""Cards: what the page says about one pair.

In: facts of pairs. Out: cards of plain text, shortened and without hidden characters.
The template escapes it.
"""

import dataclasses
import math

from pipeline import records
from pipeline.records import Decision, DropReason
from pipeline.report.pair_facts import PairFacts
from recipes.safe_text import visible

# The page shows any other reason by its name alone.
_REASON_TO_TEXT = {
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
_UNREADABLE_TEXT = "The pair cannot be read; the detail is the error."


@dataclasses.dataclass(frozen=True)
class Card:
    """One pair: its alt text, the decision on it, and other facts."""

    key: str
    text: str
    decision: str
    facts: tuple[tuple[str, str], ...]


def outcome_title(outcome: str) -> str:
    """Returns the name of an outcome in words."""
    return outcome.replace("_", " ")


def explain_outcome(outcome: str) -> str:
    """Returns a sentence about an outcome; "" if there is none."""
    if outcome == records.UNREADABLE:
        return _UNREADABLE_TEXT
    return {str(r): text for r, text in _REASON_TO_TEXT.items()}.get(outcome, "")


def make_card(one: PairFacts, decision: str) -> Card:
    """Makes a card with all facts of a pair; `decision` is text."""
    pair = one.pair
    facts = [("sample id", pair.sample_id.hex()), ("source", one.lot.source.name)]
    facts += [("key", pair.key), ("address", pair.url), ("detail", one.decision.detail)]
    facts += [("error", pair.error), ("seeds", ", ".join(one.decision.seeds))]
    if not pair.error:
        size = f"{pair.width} x {pair.height} {pair.image_format}"
        language = (
            f"{one.language.code or '?'} {format_number(one.language.probability)}"
        )
        facts += [("image", size), ("words", str(one.n_words)), ("language", language)]
        facts += [("alignment score", format_number(one.alignment_score))]
    for name, match in (("nearest evaluation", one.evaluation), ("seed", one.seed)):
        if match is not None and not pair.error:
            facts.append((name, f"{match.name} {format_number(match.similarity)}"))
    shown = [(name, visible(value)) for name, value in facts if value]
    return Card(
        one.location.key, visible(pair.alt_text), visible(decision), tuple(shown)
    )


def describe_decision(decision: Decision) -> str:
    """Returns the value that failed, its bound, and the detail as text."""
    parts = [decision.detail] if decision.detail else []
    if decision.value is not None and not math.isnan(decision.value):
        value = format_number(decision.value)
        bound = decision.threshold
        parts.insert(
            0, value if bound is None else f"{value}, bound {format_number(bound)}"
        )
    return " · ".join(parts)


def format_number(value: float | None) -> str:
    """Formats a whole number in full, any other with up to four digits."""
    if value is None or math.isnan(value):
        return "none"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
