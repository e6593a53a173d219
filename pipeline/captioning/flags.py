"""What makes a synthetic caption doubtful: one pure function a flag.

In: a caption with all that is known about it. Out: its flags. Texts are compared
without regard to case, spacing and punctuation at their end.
"""

import dataclasses
import re
import string
from collections.abc import Callable, Hashable, Mapping, Sequence

from pipeline.config.captions import CaptionQuality
from pipeline.config.prompts import IMAGE
from pipeline.records import CaptionFlag, FinishReason, Language

REPETITION_WORDS = 4  # three repeat in good captions: "to the right of it" does twice

# Marks that look like others are meant: captions come in many scripts.
_PUNCTUATION = string.punctuation + "‐–—…«»‹›„“”‚‘’¡¿،。、，！？：；「」।"  # noqa: RUF001
# PaliGemma's names of places in an image and of parts of an outline.
_LOCATION_TOKEN = re.compile(r"<(?:loc\d{4}|seg\d{3})>")


@dataclasses.dataclass(frozen=True)
class CaptionFacts:
    """One caption of one pair, and everything its flags hang on."""

    text: str
    finish_reason: str
    mean_logprob: float  # nats per token; NaN if the captioner gives none
    prompt: str  # as it was asked; "" for captions made elsewhere
    n_words: tuple[int, int]  # the fewest and the most that are expected
    alt_text: str
    others: Sequence[str]  # the pair's captions of granularities listed before this one
    n_images: int  # that have this caption of this granularity, if they are many
    language: Language
    alignment_score: float | None  # cosine; None or NaN if not measured


def normalized(text: str) -> str:
    """What two texts have in common that differ in nothing that matters."""
    return " ".join(text.casefold().split()).rstrip(_PUNCTUATION + " ")


def words(text: str) -> list[str]:
    """What stands between spaces, without punctuation around it, in lower case."""
    stripped = (word.strip(_PUNCTUATION) for word in text.casefold().split())
    return [word for word in stripped if word]


def repetition(items: Sequence[Hashable], n: int = REPETITION_WORDS) -> float:
    """Share of the sequences of `n` items that occurred before, in [0, 1)."""
    sequences = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


def has_no_end(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    return caption.finish_reason == FinishReason.LENGTH


def is_empty(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    return not normalized(caption.text)


def repeats(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    return repetition(words(caption.text)) > quality.max_repetition


def has_other_length(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    fewest, most = caption.n_words
    return not fewest <= len(words(caption.text)) <= most


def has_location_tokens(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    return _LOCATION_TOKEN.search(caption.text) is not None


def echoes_prompt(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    """Whole words only: the prompt "a cat" is no beginning of "a cathedral"."""
    prompt = words(caption.prompt.replace(IMAGE, " "))
    return bool(prompt) and words(caption.text)[: len(prompt)] == prompt


def equals_alt_text(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    return _are_equal(caption.text, caption.alt_text)


def equals_other(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    """Says it of the later granularity alone: to drop both would lose the text."""
    return any(_are_equal(caption.text, other) for other in caption.others)


def is_frequent(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    return caption.n_images - 1 > quality.max_identical


def is_foreign(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    """A text whose language cannot be told is none of another language."""
    code, probability = caption.language.code, caption.language.probability
    is_other = code not in ("", *quality.languages)
    return is_other and probability >= quality.min_foreign_probability


def has_low_logprob(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    return _is_below(caption.mean_logprob, quality.min_mean_logprob)


def has_low_alignment(caption: CaptionFacts, quality: CaptionQuality) -> bool:
    return _is_below(caption.alignment_score, quality.min_alignment_score)


FLAG_TO_RULE: Mapping[CaptionFlag, Callable[[CaptionFacts, CaptionQuality], bool]] = {
    CaptionFlag.NO_END: has_no_end,
    CaptionFlag.EMPTY: is_empty,
    CaptionFlag.REPETITION: repeats,
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
    """Two texts that say nothing are not equal: EMPTY says what they are."""
    return bool(normalized(text)) and normalized(text) == normalized(other)


def _is_below(value: float | None, threshold: float | None) -> bool:
    """What was not measured, None or NaN, is below nothing."""
    return value is not None and threshold is not None and value < threshold
