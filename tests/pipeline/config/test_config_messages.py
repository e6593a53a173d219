"""A setting that cannot be meant is refused when it is made: name, value and bound."""

import dataclasses

import pytest

from curation_configs import demo
from pipeline.config.captions import CaptionQuality, Decoding, Granularity
from pipeline.config.curation import (
    CurationConfig,
    EncoderConfig,
    ExportConfig,
    ImageTextSource,
    Limits,
    Resources,
)
from pipeline.config.duplicates import (
    Cells,
    PerceptualDescriptor,
    PoolDuplicates,
    Resemblance,
    TorchDescriptor,
)
from pipeline.config.selection import (
    CapPerConcept,
    CapPerSeed,
    KeepFraction,
    KeepLanguages,
    MinScore,
    NearestToSeeds,
    NearSeeds,
    SafetyHead,
    SeededClusters,
    SelectionConfig,
    ShortText,
)
from pipeline.selection.rules import (
    BoilerplateAltText,
    ExtremeAspect,
    FewWords,
    SmallImage,
)

COSINE = "a cosine in [-1, 1]"
PERCEPTUAL = Resemblance(PerceptualDescriptor(), 0.5)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Limits, {"max_pixels": 0}, "max_pixels=0: expected at least 1"),
        (EncoderConfig, {"batch_size": 0}, "batch_size=0: expected at least 1"),
        (EncoderConfig, {"cls_token": "a"}, "cls_token='a': expected 'alt_text' or"),
        (Decoding, {"temperature": -1}, "temperature=-1: expected at least 0"),
        (Decoding, {"top_p": 0}, "top_p=0: expected 0 < probability <= 1"),
        (Decoding, {"n_samples": 0}, "n_samples=0: expected at least 1"),
        (Granularity, {"n_words": (2, 1)}, "n_words=(2, 1): expected the fewest and"),
        (Granularity, {"max_new_tokens": 0}, "max_new_tokens=0: expected at least 1"),
        (Granularity, {"batch_size": 0}, "batch_size=0: expected at least 1"),
        (Granularity, {"captioner": "x"}, "captioner='x': expected 'paligemma' or"),
        (Granularity, {"resampling": "x"}, "resampling='x': expected '' or 'nearest'"),
        (Granularity, {"dtype": "x"}, "dtype='x': expected 'float32' or 'bfloat16'"),
        (CaptionQuality, {"max_repetition": 2}, "max_repetition=2: expected 0 to 1"),
        (
            CaptionQuality,
            {"min_foreign_probability": 2},
            "min_foreign_probability=2: expected 0 to 1",
        ),
        (CaptionQuality, {"max_identical": 0}, "max_identical=0: expected at least 1"),
        (CaptionQuality, {"languages": ()}, "languages=(): expected at least one"),
        (CaptionQuality, {"languages": ("E",)}, "languages='E': expected codes such"),
        (CaptionQuality, {"min_mean_logprob": 1}, "min_mean_logprob=1: expected at"),
        (
            CaptionQuality,
            {"min_alignment_score": 0.1},
            "min_alignment_score=0.1: expected measure_alignment=True with it",
        ),
        (ExportConfig, {"samples_per_shard": 0}, "samples_per_shard=0: expected at"),
        (ExportConfig, {"max_side_px": 0}, "max_side_px=0: expected at least 1"),
        (ExportConfig, {"jpeg_quality": 0}, "jpeg_quality=0: expected 1 to 100"),
        (
            ExportConfig,
            {"drop_caption_flags": ("bad",)},
            "drop_caption_flags='bad': expected one of no_end, empty",
        ),
        (Resources, {"min_ram_gb": -1}, "min_ram_gb=-1: expected 0 or more"),
        (Resources, {"accelerator": "l4"}, "accelerator='l4': expected a hint such as"),
        (BoilerplateAltText, {"patterns": ("(",)}, "patterns=('(',): expected regular"),
        (FewWords, {"min_words": 0}, "min_words=0: expected at least 1"),
        (SmallImage, {"min_side_px": 0}, "min_side_px=0: expected at least 1"),
        (ExtremeAspect, {"max_aspect": 0.5}, "max_aspect=0.5: expected at least 1"),
        (Resemblance, {"max_similarity": 2}, f"max_similarity=2: expected {COSINE}"),
        (TorchDescriptor, {"name": "encoder"}, "name='encoder': expected one of its"),
        (TorchDescriptor, {"size_px": 0}, "size_px=0: expected at least 1"),
        (Cells, {"n_clusters": 0}, "n_clusters=0: expected at least 1"),
        (PoolDuplicates, {"by": ()}, "by=(): expected at least one resemblance"),
        (
            PoolDuplicates,
            {"by": (PERCEPTUAL,), "alarm_size": 1},
            "alarm_size=1: expected at least 2",
        ),
        (ShortText, {"max_words": 0}, "max_words=0: expected at least 1"),
        (ShortText, {"min_score": 2}, f"min_score=2: expected {COSINE}"),
        (KeepLanguages, {"languages": ()}, "languages=(): expected at least one"),
        (KeepLanguages, {"min_probability": 2}, "min_probability=2: expected 0 to 1"),
        (
            KeepLanguages,
            {"min_foreign_probability": 2},
            "min_foreign_probability=2: expected 0 to 1",
        ),
        (MinScore, {"min_score": 2}, f"min_score=2: expected {COSINE}"),
        (KeepFraction, {"keep_fraction": 0}, "keep_fraction=0: expected 0 < fraction"),
        (NearSeeds, {"min_similarity": 2}, f"min_similarity=2: expected {COSINE}"),
        (NearestToSeeds, {"k": 0}, "k=0: expected at least 1"),
        (NearestToSeeds, {"set_to_k": {"a": 0}}, "set_to_k['a']=0: expected at least"),
        (
            SeededClusters,
            {"max_per_set": 3},
            "max_per_cluster=10000: expected at most max_per_set=3",
        ),
        (CapPerSeed, {"max_count": 0}, "max_count=0: expected at least 1"),
        (CapPerSeed, {"rng_seed": -1}, "rng_seed=-1: expected at least 0"),
        (CapPerConcept, {"concepts": ""}, "concepts='': expected the path of a file"),
        (SafetyHead, {"head": ""}, "head='': expected the path of a file"),
        (SafetyHead, {"max_probability": 2}, "max_probability=2: expected 0 to 1"),
        (
            SelectionConfig,
            {"drop_rules": (len,)},
            "drop_rules=<built-in function len>: expected instances of dataclasses",
        ),
        (SelectionConfig, {"max_exact_set": -1}, "max_exact_set=-1: expected at least"),
        (
            SelectionConfig,
            {"opt_out_directives": ("NoAI",)},
            "opt_out_directives='NoAI': expected lower-case directives such as 'noai'",
        ),
        (
            SelectionConfig,
            {"max_evaluation_similarity": 2},
            f"max_evaluation_similarity=2: expected {COSINE}",
        ),
    ],
)
def test_a_value_out_of_bounds_is_named_with_them(kind, fields, message):
    needed = {
        EncoderConfig: {"checkpoint": "x"},
        Granularity: {"name": "x", "checkpoint": "x"},
        Resemblance: {"descriptor": PerceptualDescriptor()},
        TorchDescriptor: {"checkpoint": "x"},
        ShortText: {"policy": "keep", "max_words": 1},
        CapPerSeed: {"max_count": 1},
        CapPerConcept: {"concepts": "x"},
        SafetyHead: {"head": "x", "max_probability": 0.5},
    }
    with pytest.raises(ValueError) as error:  # noqa: PT011 (read below)
        kind(**needed.get(kind, {}) | fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"granularities": (Granularity("a b", "x"),)},
            "granularities.0.name='a b': expected a name of letters, digits, _ and -",
        ),
        (
            {"sources": (ImageTextSource("a", "x"), ImageTextSource("a", "y"))},
            "sources=('a', 'a'): expected names that differ",
        ),
        (
            {"export": ExportConfig(required_granularities=("none",))},
            "required_granularities='none': expected of {",
        ),
        (
            {"export": ExportConfig(drop_caption_flags=("low_logprob",))},
            "drop_caption_flags='low_logprob': expected caption_quality.min_mean_logp",
        ),
    ],
)
def test_parts_that_do_not_fit_each_other_are_named(fields, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (read below)
        dataclasses.replace(demo.get_config(), **fields)
    assert message in str(error.value)
    assert isinstance(demo.get_config(), CurationConfig)
