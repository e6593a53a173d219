"""What a recipe says about captions: who writes them, and which are doubtful."""

import dataclasses
import fractions
import re
from typing import Literal

from pipeline.config.language_codes import expect_codes
from recipes.settings import Settings
from recipes.validation import expect, expect_cosine

CAPTIONERS = ("paligemma", "huggingface", "gemini", "imported")  # see docs/captions.md

_OWN_CAPTIONER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclasses.dataclass(frozen=True)
class Decoding(Settings):
    """How a captioner chooses tokens: the most likely one, or one drawn by chance.

    Chance depends on the image, the granularity and `rng_seed` alone.
    """

    temperature: float = 0.0  # 0 takes the most likely token
    top_p: float = 1.0  # draws from the likeliest tokens that have this probability
    n_samples: int = 1  # captions per image
    rng_seed: int = 0

    def __post_init__(self) -> None:
        expect(self.temperature >= 0, "temperature", self.temperature, "at least 0")
        expect(0 < self.top_p <= 1, "top_p", self.top_p, "0 < probability <= 1")
        expect(self.n_samples >= 1, "n_samples", self.n_samples, "at least 1")
        is_alike = self.n_samples > 1 and self.temperature == 0
        expected = "1, as temperature=0 makes all samples equal"
        expect(not is_alike, "n_samples", self.n_samples, expected)


@dataclasses.dataclass(frozen=True)
class Spend(Settings):
    """What the captions of a granularity may cost in one run folder, commands added up.

    A request is one caption that the captioner is asked for: `n_samples` for an image
    and a prompt. Nothing here changes a caption or its fingerprint.
    """

    max_requests: int | None = None  # None is no bound
    max_usd: float | None = None  # at usd_per_request each; None is no bound
    usd_per_request: float | None = None  # with the image and the prompt

    def __post_init__(self) -> None:
        for name in ("max_requests", "max_usd", "usd_per_request"):
            value = getattr(self, name)
            expect(value is None or value >= 0, name, value, "at least 0")
        if self.max_usd is not None:
            has_price = bool(self.usd_per_request)
            expect(has_price, "max_usd", self.max_usd, "usd_per_request with it")

    @property
    def limit(self) -> int | None:
        """The most requests; None if there is no bound."""
        limits = [] if self.max_requests is None else [self.max_requests]
        if self.max_usd is not None and self.usd_per_request:
            # In decimals: 0.3 USD at 0.1 are three requests.
            total, each = (
                fractions.Fraction(str(usd))
                for usd in (self.max_usd, self.usd_per_request)
            )
            limits.append(int(total / each))
        return min(limits, default=None)

    def usd(self, n_requests: int) -> float | None:
        """The price of requests; None if it is not known."""
        if self.usd_per_request is None:
            return None
        return n_requests * self.usd_per_request


@dataclasses.dataclass(frozen=True)
class Granularity(Settings):
    """How much a synthetic caption says: a captioner, its prompt and its decoding.

    `prompt` is a template of `pipeline.config.prompts`.
    """

    name: str  # of its captions in records: `captions/<name>`
    checkpoint: str  # folder or Hugging Face id; model of an API; glob of caption files
    prompt: str = ""
    max_new_tokens: int = 64  # captions that reach it are flagged `no_end`
    # What writes the captions: paligemma, huggingface, gemini, imported, or a class of
    # your own, `MODULE:CLASS`.
    captioner: str = "paligemma"
    revision: str = ""  # of a Hugging Face id; "" is its newest
    digest: str = ""  # that the checkpoint must have; "" allows any
    # Of images on their way to the model's size; "" is what the checkpoint says.
    resampling: Literal["", "nearest", "bilinear", "bicubic", "lanczos"] = ""
    decoding: Decoding = Decoding()
    batch_size: int = 64  # images a device
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16 is for accelerators
    n_model_shards: int = 1  # devices that share one copy of the weights
    n_words: tuple[int, int] = (1, 1000)  # fewest and most; others are flagged
    # Not in what is recorded beside captions and training shards: it changes neither.
    spend: Spend = dataclasses.field(default=Spend(), repr=False)

    @property
    def is_metered(self) -> bool:
        """Whether its requests are counted, as they cost money."""
        return self.captioner == "gemini" or self.spend != Spend()

    @property
    def has_own_captioner(self) -> bool:
        """Whether `captioner` names a class outside of the project."""
        return _OWN_CAPTIONER.fullmatch(self.captioner) is not None

    def __post_init__(self) -> None:
        is_known = self.captioner in CAPTIONERS or self.has_own_captioner
        names = " or ".join(map(repr, CAPTIONERS))
        expected = f"{names}, or MODULE:CLASS of a captioner of your own"
        expect(is_known, "captioner", self.captioner, expected)
        is_range = len(self.n_words) == 2 and 0 <= self.n_words[0] <= self.n_words[1]
        expect(is_range, "n_words", self.n_words, "the fewest and the most words")
        for name in ("max_new_tokens", "batch_size", "n_model_shards"):
            expect(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        if self.captioner == "imported":
            expect(not self.prompt, "prompt", self.prompt, "none of imported captions")
            is_free = self.spend == Spend()
            expect(is_free, "spend", self.spend, "none of imported captions")


@dataclasses.dataclass(frozen=True)
class CaptionQuality(Settings):
    """When a synthetic caption is flagged; None switches a flag off.

    Nothing here makes a caption again or drops one; `drop_caption_flags` drops.
    """

    # Share of four-word sequences that occurred before. The most in 10,854 captions by
    # people is 0.16 (2,205 of photos, 8,649 Conceptual Captions), as in the demo's own.
    max_repetition: float = 0.2
    # Other images that have the same caption of a granularity. A caption that fits a
    # hundred others says little about one, and so few texts are that frequent that
    # every worker can hold them.
    max_identical: int = 100
    languages: tuple[str, ...] = ("en",)  # the language of TIPS's texts
    # More likely than all others together. fastText is then wrong about 0.3 % of 2,205
    # English captions cut to one, two or three words, and about none of them whole.
    min_foreign_probability: float = 0.5
    min_mean_logprob: float | None = None  # nats; differs between captioners
    measure_alignment: bool = False  # with the recipe's encoder: one text per caption
    min_alignment_score: float | None = None  # cosine; differs between encoders

    def __post_init__(self) -> None:
        for name in ("max_repetition", "min_foreign_probability"):
            value = getattr(self, name)
            expect(0 <= value <= 1, name, value, "0 to 1")
        n = self.max_identical
        expect(n >= 1, "max_identical", n, "at least 1")
        expect(bool(self.languages), "languages", self.languages, "at least one")
        expect_codes(self.languages)
        if self.min_mean_logprob is not None:
            is_valid = self.min_mean_logprob <= 0
            expect(is_valid, "min_mean_logprob", self.min_mean_logprob, "at most 0")
        if self.min_alignment_score is not None:
            score = self.min_alignment_score
            expect_cosine("min_alignment_score", score)
            expected = "measure_alignment=True with it"
            expect(self.measure_alignment, "min_alignment_score", score, expected)
