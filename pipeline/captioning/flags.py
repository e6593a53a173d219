"""The flags of doubtful captions: one pure function per flag.

In: the facts about a caption, and the thresholds of a recipe. Out: its flags. Texts are
compared without case, spacing and punctuation at the end.

>>> normalize_text("A  red Square. "), repetition(words("On and on, and on!"), 2)
('a red square', 0.5)
"""

import dataclasses
import re
import string
from collections.abc import Callable, Hashable, Mapping, Sequence

from pipeline.config.captions import CaptionQuality
from pipeline.config.prompts import IMAGE
from pipeline.records import CaptionFlag, FinishReason, Language

REPETITION_WORDS = 4  # sequences of three repeat in good captions

# Marks that resemble ASCII are intended: captions come in many scripts.
_PUNCTUATION = string.punctuation + "‐–—…«»‹›„“”‚‘’¡¿،。、，！？：；「」।"  # noqa: RUF001
# PaliGemma's tokens for locations in an image and for parts of an outline.
_LOCATION_TOKEN = re.compile(r"<(?:loc\d{4}|seg\d{3})>")


@dataclasses.dataclass(frozen=True)
class CaptionFacts:
    """One caption of one pair, with everything that its flags depend on."""

    text: str
    finish_reason: str
    mean_logprob: float  # nats per token; NaN if the captioner gives none
    prompt: str  # as it was asked; "" for captions made elsewhere
    n_words: tuple[int, int]  # the fewest and the most expected
    alt_text: str
    others: Sequence[str]  # the pair's captions of granularities listed before this one
    n_images: int  # with this caption of this granularity; 0 unless they are many
    language: Language
    alignment_score: float | None  # cosine; None or NaN if not measured


def normalize_text(text: str) -> str:
    """A text without case, spacing and punctuation at its end, for comparisons."""
    return " ".join(text.casefold().split()).rstrip(_PUNCTUATION + " ")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation around them."""
    stripped = (word.strip(_PUNCTUATION) for word in text.casefold().split())
    return [word for word in stripped if word]


def repetition(items: Sequence[Hashable], n: int = REPETITION_WORDS) -> float:
    """The share of sequences of `n` items that occurred before, in [0, 1)."""
    sequences = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


def has_no_end(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    """Whether it was cut at the limit of new tokens."""
    return caption.finish_reason == FinishReason.LENGTH


def is_empty(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    """Whether it holds nothing but spaces and punctuation."""
    return not normalize_text(caption.text)


def repeats_itself(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    """Whether too many of its word sequences occurred before."""
    return repetition(words(caption.text)) > quality.max_repetition


def has_other_length(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    """Whether it has fewer or more words than its granularity expects."""
    fewest, most = caption.n_words
    return not fewest <= len(words(caption.text)) <= most


def has_location_tokens(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    """Whether it holds tokens of detection or segmentation."""
    return _LOCATION_TOKEN.search(caption.text) is not None


def echoes_prompt(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    """Whether it begins with the words of its prompt; "a cathedral" is no "a cat"."""
    prompt = words(caption.prompt.replace(IMAGE, " "))
    return bool(prompt) and words(caption.text)[: len(prompt)] == prompt


def equals_alt_text(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    """Whether it says the same as the alt text."""
    return _are_equal(caption.text, caption.alt_text)


def equals_other(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    """Whether it equals a caption of an earlier granularity of its pair.

    Only the later one is flagged: to drop both would lose the text.
    """
    return any(_are_equal(caption.text, other) for other in caption.others)


def is_frequent(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    """Whether too many other images have the same caption."""
    return caption.n_images - 1 > quality.max_identical


def is_foreign(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    """Whether it is in a language that the recipe does not expect.

    A text of unknown language is not flagged.
    """
    code, probability = caption.language.code, caption.language.probability
    is_other = code not in ("", *quality.languages)
    return is_other and probability >= quality.min_foreign_probability


def has_low_logprob(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    """Whether the captioner gave it a mean log-probability below the bound."""
    return _is_below(caption.mean_logprob, quality.min_mean_logprob)


def has_low_alignment(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    """Whether its cosine with the image is below the bound."""
    return _is_below(caption.alignment_score, quality.min_alignment_score)


FLAG_TO_RULE: Mapping[CaptionFlag, Callable[[CaptionFacts, CaptionQuality], bool]] = {
    CaptionFlag.NO_END: has_no_end,
    CaptionFlag.EMPTY: is_empty,
    CaptionFlag.REPETITION: repeats_itself,
    CaptionFlag.LENGTH: has_other_length,
    CaptionFlag.LOCATION_TOKENS: has_location_tokens,
    CaptionFlag.PROMPT_ECHO: echoes_prompt,
    CaptionFlag.EQUALS_ALT_TEXT: equals_alt_text,
    CaptionFlag.EQUALS_OTHER: equals_other,
    CaptionFlag.FREQUENT: is_frequent,
    CaptionFlag.LANGUAGE: is_foreign,
    CaptionFlag.LOW_LOGPROB: has_low_logprob,
    CaptionFlag.LOW_ALIGNMENT: has_low_alignment,
}


def flags_of(caption: CaptionFacts, quality: CaptionQuality) -> tuple[CaptionFlag, ...]:
    """All flags of a caption, in the order of CaptionFlag."""
    return tuple(flag for flag in CaptionFlag if FLAG_TO_RULE[flag](caption, quality))


def _are_equal(text: str, other: str) -> bool:
    """Whether two texts are the same; two empty ones are not, as EMPTY flags them."""
    return bool(normalize_text(text)) and normalize_text(text) == normalize_text(other)


def _is_below(value: float | None, threshold: float | None) -> bool:
    """Whether a measured value is below a threshold; None and NaN never are."""
    return value is not None and threshold is not None and value < threshold
