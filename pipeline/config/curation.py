"""CurationConfig: what a recipe says, checked when it is made, and its fingerprints.

A recipe is a Python file with `get_config() -> CurationConfig`. Thresholds that the
TIPS papers do not publish have no default here: a recipe states them with its reason.
"""

import dataclasses
import functools
import hashlib
import json
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal

from pipeline.config.language_codes import expect_codes
from pipeline.config.selection import SelectionConfig
from pipeline.images.limits import DEFAULT_LIMITS, Limits
from pipeline.records import CaptionFlag
from recipes import recipe_file
from recipes.settings import Settings, described, type_hints
from recipes.validation import (
    ADDED_LATER,
    expect,
    expect_cosine,
    expect_names,
    one_line,
    shown,
)

FORMAT_VERSION = 2  # of everything in a run folder


@dataclasses.dataclass(frozen=True)
class ImageTextSource(Settings):
    """Source shards of one kind: img2dataset tars or Parquet, Hugging Face Parquet.

    Column names matter for Parquet only; "" takes the first usual name that is there.
    """

    name: str  # in ledgers, reports and training records
    pattern: str | tuple[str, ...]  # globs, on any file system that Beam knows
    image_column: str = ""  # encoded images, or Hugging Face's struct of them
    alt_text_column: str = ""  # texts
    key_column: str = ""  # the source's own name of a pair
    needs_alt_text: bool = True  # a pair without alt text is unreadable
    keep_all: bool = False  # nothing is dropped but opt-outs and evaluation images


@dataclasses.dataclass(frozen=True)
class EncoderConfig(Settings):
    """The image-text encoder that measures alignment and similarity."""

    checkpoint: str  # folder or Hugging Face id
    batch_size: int = 64  # pairs that are embedded at a time
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16 is for accelerators
    # Which of the two image vectors of a TIPS checkpoint, by the texts that it was
    # trained against: scores are of alt texts. SigLIP has one.
    cls_token: Literal["alt_text", "synthetic_caption"] = "alt_text"

    def __post_init__(self) -> None:
        expect(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")


@dataclasses.dataclass(frozen=True)
class Decoding(Settings):
    """How a captioner chooses tokens: the most likely one, or one drawn by chance.

    Chance hangs on the image, the granularity and `rng_seed` alone.
    """

    temperature: float = 0.0  # 0 takes the most likely token
    top_p: float = 1.0  # draws from the likeliest tokens that have this probability
    n_samples: int = 1  # captions an image
    rng_seed: int = 0

    def __post_init__(self) -> None:
        expect(self.temperature >= 0, "temperature", self.temperature, "at least 0")
        expect(0 < self.top_p <= 1, "top_p", self.top_p, "0 < probability <= 1")
        expect(self.n_samples >= 1, "n_samples", self.n_samples, "at least 1")
        is_alike = self.n_samples > 1 and self.temperature == 0
        expected = "1, as temperature=0 makes all samples alike"
        expect(not is_alike, "n_samples", self.n_samples, expected)


@dataclasses.dataclass(frozen=True)
class Granularity(Settings):
    """How much a synthetic caption says: a captioner, its prompt and its decoding.

    `prompt` is a template of `pipeline.config.prompts`.
    """

    name: str  # of its captions in records: `captions/<name>`
    checkpoint: str  # folder or Hugging Face id; model of an API; glob of caption files
    prompt: str = ""
    max_new_tokens: int = 64  # captions that reach it are flagged `no_end`
    # What writes the captions; `docs/captions.md` describes the four.
    captioner: Literal["paligemma", "huggingface", "gemini", "imported"] = "paligemma"
    revision: str = ""  # of a Hugging Face id; "" is its newest
    digest: str = ""  # that the checkpoint must have; "" allows any
    # Of images on their way to the model's size; "" is what the checkpoint says.
    resampling: Literal["", "nearest", "bilinear", "bicubic", "lanczos"] = ""
    decoding: Decoding = Decoding()
    batch_size: int = 64  # images a device
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16 is for accelerators
    n_model_shards: int = 1  # devices that share one copy of the weights
    n_words: tuple[int, int] = (1, 1000)  # fewest and most; others are flagged

    def __post_init__(self) -> None:
        is_range = len(self.n_words) == 2 and 0 <= self.n_words[0] <= self.n_words[1]
        expect(is_range, "n_words", self.n_words, "the fewest and the most words")
        for name in ("max_new_tokens", "batch_size", "n_model_shards"):
            expect(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        if self.captioner == "imported":
            expect(not self.prompt, "prompt", self.prompt, "none of imported captions")


@dataclasses.dataclass(frozen=True)
class CaptionQuality(Settings):
    """From where on a synthetic caption is flagged; None switches a flag off.

    Nothing here makes a caption again, or drops one: `drop_caption_flags` does.
    """

    # Share of four-word sequences that occurred before. The most in 10,854 captions by
    # people is 0.16 (2,205 of photos, 8,649 Conceptual Captions), as in the demo's own.
    max_repetition: float = 0.2
    # Images beside its own that have the same caption of a granularity: what fits a
    # hundred others says little of one, and so few texts are that frequent that every
    # worker can hold them.
    max_identical: int = 100
    languages: tuple[str, ...] = ("en",)  # that of TIPS's texts
    # More likely than all others together. fastText is then wrong about 0.3 % of 2,205
    # English captions cut to one, two or three words, and about none of them whole.
    min_foreign_probability: float = 0.5
    min_mean_logprob: float | None = None  # nats; differs from captioner to captioner
    measure_alignment: bool = False  # with the recipe's encoder: one text a caption
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


# What a flag needs to be set at all.
_FLAG_TO_THRESHOLD = {
    CaptionFlag.LOW_LOGPROB: "min_mean_logprob",
    CaptionFlag.LOW_ALIGNMENT: "min_alignment_score",
}


@dataclasses.dataclass(frozen=True)
class ExportConfig(Settings):
    """How training shards are cut."""

    samples_per_shard: int = 10_000  # all shards but the last are full
    max_side_px: int = 512  # of the short side; larger images are resized once
    jpeg_quality: int = 90  # of resized images; others keep their bytes
    required_granularities: tuple[str, ...] = ()  # samples without them stay out
    drop_caption_flags: tuple[str, ...] = ()  # captions with one of them stay out

    def __post_init__(self) -> None:
        known = [str(flag) for flag in CaptionFlag]
        expected = f"one of {', '.join(known)}"
        for name in self.drop_caption_flags:
            expect(name in known, "drop_caption_flags", name, expected)
        for name in ("samples_per_shard", "max_side_px"):
            expect(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        is_valid = 1 <= self.jpeg_quality <= 100
        expect(is_valid, "jpeg_quality", self.jpeg_quality, "1 to 100")


@dataclasses.dataclass(frozen=True)
class Resources(Settings):
    """What a worker needs for the model of a stage, where the runner makes workers.

    Runners of this machine take it as it is.
    """

    min_ram_gb: int = 0  # 0 leaves it to the runner
    accelerator: str = ""  # as Beam hints, "type:nvidia-l4;count:1"; "" for none

    def __post_init__(self) -> None:
        expect(self.min_ram_gb >= 0, "min_ram_gb", self.min_ram_gb, "0 or more")
        is_hint = re.fullmatch(r"(type:[^;:]+(;[^;]+)*)?", self.accelerator) is not None
        expected = "a hint such as 'type:nvidia-l4;count:1;install-nvidia-driver'"
        expect(is_hint, "accelerator", self.accelerator, expected)

    @property
    def hints(self) -> dict[str, str]:
        """Arguments of Beam's `with_resource_hints`."""
        found = {"min_ram": f"{self.min_ram_gb}GB"} if self.min_ram_gb else {}
        return found | ({"accelerator": self.accelerator} if self.accelerator else {})


@dataclasses.dataclass(frozen=True)
class CurationConfig(Settings):
    """One curated data set, from source shards to training shards."""

    encoder: EncoderConfig
    selection: SelectionConfig
    granularities: tuple[Granularity, ...] = ()
    sources: tuple[ImageTextSource, ...] = ()
    evaluation_sets: tuple[ImageTextSource, ...] = ()
    seed_sets: tuple[ImageTextSource, ...] = ()
    # Of alt texts and captions; fastText is the faster and the better of the two.
    language_detector: Literal["fasttext", "langdetect"] = "fasttext"
    limits: Limits = DEFAULT_LIMITS
    caption_quality: CaptionQuality = CaptionQuality()
    export: ExportConfig = ExportConfig()
    # Where the models run; left out of what names results, which it does not change.
    score_workers: Resources = dataclasses.field(default=Resources(), repr=False)
    caption_workers: Resources = dataclasses.field(default=Resources(), repr=False)

    def __post_init__(self) -> None:
        expect_names("granularities", [g.name for g in self.granularities])
        for kind in ("sources", "evaluation_sets", "seed_sets"):
            expect_names(kind, [source.name for source in getattr(self, kind)])
        kept = self.selection.language.languages if self.selection.language else ()
        expect_codes((*kept, *self.caption_quality.languages), self.language_detector)
        known = {granularity.name for granularity in self.granularities}
        for name in self.export.required_granularities:
            expect(name in known, "required_granularities", name, f"of {known}")
        for flag, threshold in _FLAG_TO_THRESHOLD.items():
            if flag in self.export.drop_caption_flags:
                is_set = getattr(self.caption_quality, threshold) is not None
                expected = f"caption_quality.{threshold} with it"
                expect(is_set, "drop_caption_flags", str(flag), expected)


def load_config(path: str) -> CurationConfig:
    """The configuration that the recipe in a Python file returns.

    `curation_configs/NAME.py` is found where the package is installed, too.

    Raises:
      ValueError: one line that says what is wrong with the file.
    """
    return recipe_file.load(path, CurationConfig, "curation_configs")


def override(config: Any, assignment: str) -> Any:
    """Applies one `a.b=value` of the command line to a (nested) dataclass.

    Raises:
      ValueError: on a field that is not there or a value of another type.
    """
    path, equals, text = assignment.partition("=")
    if not equals:
        raise ValueError(f"--set {one_line(assignment, 80)}: expected a.b=value")
    try:
        return _replace(config, path.split("."), text)
    except ValueError as error:
        raise ValueError(f"--set {one_line(assignment, 80)}: {error}") from error


def _replace(value: Any, path: list[str], text: str) -> Any:
    name, *rest = path
    if isinstance(value, tuple):
        return _replace_item(value, path, text)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise ValueError(f"{shown(value)} has no field {name!r}")
    names = [field.name for field in dataclasses.fields(value)]
    if name not in names:
        expected = ", ".join(names)
        raise ValueError(f"no field {name!r}, expected one of {expected}")
    old = getattr(value, name)
    hint = type_hints(type(value))[name]
    new = _replace(old, rest, text) if rest else parse_value(text, hint)
    return dataclasses.replace(value, **{name: new})


def _replace_item(items: tuple, path: list[str], text: str) -> tuple:
    name, *rest = path
    if not name.isdigit() or int(name) >= len(items) or not rest:
        raise ValueError(f"index {name!r}: expected 0 to {len(items) - 1} and a field")
    index = int(name)
    return (*items[:index], _replace(items[index], rest, text), *items[index + 1 :])


def parse_value(text: str, hint: Any) -> Any:
    """Reads a text as the annotated type: a number, bool, text, Literal or tuple."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if text == "none" and type(None) in arguments:
            return None
        (hint,) = [a for a in arguments if a in (int, float, str, bool)] or [None]
    if origin is tuple:
        return tuple(parse_value(t, arguments[0]) for t in text.split(",") if t)
    if origin is Literal:
        expect(text in arguments, "value", text, " or ".join(arguments))
        return text
    if hint is bool:
        expect(text in ("true", "false"), "value", text, "true or false")
        return text == "true"
    if hint not in (int, float, str):
        raise ValueError("this field is set in a recipe, or through its own fields")
    try:
        return hint(text)
    except ValueError as error:
        raise ValueError(f"value={shown(text)}: expected {described(hint)}") from error


def fingerprint(*parts: Any) -> str:
    """12 hexadecimal digits of what determines a table."""
    values = [to_json(part, fields_of=_determining_fields) for part in parts]
    text = json.dumps([FORMAT_VERSION, *values], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _determining_fields(value: Any) -> list[dataclasses.Field]:
    return [
        field
        for field in dataclasses.fields(value)
        if not ADDED_LATER.keys() <= field.metadata.keys()
        or getattr(value, field.name) != field.default
    ]


def to_json(
    value: Any,
    *,
    fields_of: Callable[[Any], Iterable[dataclasses.Field]] = dataclasses.fields,
) -> Any:
    """A dataclass as plain JSON values, with the name of its class."""
    plain = functools.partial(to_json, fields_of=fields_of)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in fields_of(value)}
        return {"class": type(value).__name__} | {
            name: plain(item) for name, item in fields.items()
        }
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    is_plain = value is None or isinstance(value, (str, int, float))
    expect(is_plain, "recipe", value, "numbers, texts, tuples and dataclasses alone")
    return value
