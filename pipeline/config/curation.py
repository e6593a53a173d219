"""CurationConfig: what a recipe says, checked when it is made.

A recipe is a Python file with `get_config() -> CurationConfig`. Thresholds that the
TIPS papers do not publish have no default here: a recipe states them with its reason.
"""

import dataclasses
import re
from typing import Literal

from pipeline.config.captions import CaptionQuality, Granularity
from pipeline.config.language_codes import expect_codes
from pipeline.config.selection import SelectionConfig
from pipeline.images.limits import DEFAULT_LIMITS, Limits
from pipeline.records import CaptionFlag
from recipes.settings import Settings
from recipes.validation import (
    expect,
    expect_names,
)


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
    needs_alt_text: bool = True  # then a pair without alt text is unreadable
    keep_all: bool = False  # only opt-outs and evaluation images are dropped


@dataclasses.dataclass(frozen=True)
class EncoderConfig(Settings):
    """The image-text encoder that measures alignment and similarity."""

    checkpoint: str  # folder or Hugging Face id
    batch_size: int = 64  # pairs that a device embeds at a time
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16 is for accelerators
    # Which of a TIPS checkpoint's two image vectors, named by the texts that it was
    # trained on: scores compare alt texts. SigLIP has one vector.
    cls_token: Literal["alt_text", "synthetic_caption"] = "alt_text"

    def __post_init__(self) -> None:
        expect(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")


# Flags that exist only with a threshold.
_FLAG_TO_THRESHOLD = {
    CaptionFlag.LOW_LOGPROB: "min_mean_logprob",
    CaptionFlag.LOW_ALIGNMENT: "min_alignment_score",
}


@dataclasses.dataclass(frozen=True)
class ExportConfig(Settings):
    """How training shards are cut."""

    samples_per_shard: int = 10_000  # all shards of a lot but the last are full
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

    Local runners ignore it.
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
    # For alt texts and captions; fastText is the faster and the better of the two.
    language_detector: Literal["fasttext", "langdetect"] = "fasttext"
    limits: Limits = DEFAULT_LIMITS
    caption_quality: CaptionQuality = dataclasses.field(default=CaptionQuality())
    export: ExportConfig = ExportConfig()
    # How many shards a new lot has at most; about a million pairs are best.
    shards_per_lot: int = dataclasses.field(default=100, repr=False)
    # Images that may be gone when a stage reads them, as a share; beyond it `caption`
    # and `export` fail. Rows of RUN/errors name them.
    max_failed_share: float = dataclasses.field(default=0.01, repr=False)
    # Where the models run; no part of fingerprints, as it changes no result.
    score_workers: Resources = dataclasses.field(default=Resources(), repr=False)
    caption_workers: Resources = dataclasses.field(default=Resources(), repr=False)

    def __post_init__(self) -> None:
        n = self.shards_per_lot
        expect(n >= 1, "shards_per_lot", n, "at least 1")
        share = self.max_failed_share
        expect(0 <= share <= 1, "max_failed_share", share, "a share from 0 to 1")
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
