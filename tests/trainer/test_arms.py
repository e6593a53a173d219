"""Each row of the papers' tables differs from its reference as the paper says."""

import importlib
import pathlib

import pytest

from trainer import config_files
from trainer.config import TrainConfig

FOLDERS = ("tips_table1", "tips_table11", "tipsv2_ablations")
CONFIGS = pathlib.Path("trainer/configs")

NO_TERMS = {
    "self_supervision.distillation_weight": 0.0,
    "self_supervision.patch_weight": 0.0,
}
PATCHES = {
    "self_supervision.patch_weight": 2.0,
    "self_supervision.patch_loss": "ibot++",
}
CAPTIONS = "data.granularity_weights"
MASK = "self_supervision.mask_ratio"
FROM, PARTS = "init_from", "init_parts"
FROZEN_TEXT = {"optimizer.is_text_frozen": True}


def pairs(*tokens_and_texts):
    """`contrastive` as plain values, of equal weights that sum to 1."""
    weight = 1.0 / max(len(tokens_and_texts), 1)
    return {
        "contrastive": [
            {"token": token, "text": text, "weight": weight, "loss": None}
            for token, text in tokens_and_texts
        ]
    }


ALT, SYNTHETIC = "alt_text", "synthetic_caption"
TWO_TOKENS = pairs((1, ALT), (2, SYNTHETIC))

# A configuration to its reference, and the fields in which it differs.
ARMS: dict[str, tuple[str, dict]] = {
    "tips_table1.clip": ("tips_b14", pairs((1, ALT)) | NO_TERMS),
    "tips_table1.synthetic_only": ("tips_table1.clip", pairs((1, SYNTHETIC))),
    "tips_table1.sampled": (
        "tips_table1.synthetic_only",
        {f"{CAPTIONS}.alt_text": 0.5, f"{CAPTIONS}.coco": 0.5},
    ),
    "tips_table1.multi_text": ("tips_table1.clip", pairs((1, ALT), (1, SYNTHETIC))),
    "tips_table1.dual": ("tips_table1.clip", TWO_TOKENS),
    "tips_table1.clip_distillation": (
        "tips_table1.clip",
        {"self_supervision.distillation_weight": 1.0},
    ),
    "tips_table1.clip_distillation_masking": (
        "tips_table1.clip_distillation",
        {"self_supervision.patch_weight": 2.0},
    ),
    "tips_table1.self_supervision": ("tips_b14", pairs() | FROZEN_TEXT),
    "tips_table1.tips": ("tips_table1.clip_distillation_masking", TWO_TOKENS),
    "tips_table11.mask_050": ("tips_b14", {MASK: 0.5}),
    "tips_table11.mask_025": ("tips_b14", {MASK: 0.25}),
    "tips_table11.block_masks": ("tips_b14", {"self_supervision.masking": "block"}),
    "tips_table11.masking_after_clip": (
        "tips_b14",
        pairs()
        | FROZEN_TEXT
        | {PARTS: "towers", "self_supervision.distillation_weight": 0.0},
    ),
    "tipsv2_ablations.t2_mask_0_random_init": ("tipsv2_l14_distilled", {}),
    "tipsv2_ablations.t2_mask_075_random_init": (
        "tipsv2_l14_distilled",
        {MASK: 0.75},
    ),
    "tipsv2_ablations.t2_mask_050_random_init": ("tipsv2_l14_distilled", {MASK: 0.5}),
    "tipsv2_ablations.t2_mask_0_pretrained_init": (
        "tipsv2_l14_distilled",
        {FROM: "pretrained", PARTS: "towers"},
    ),
    "tipsv2_ablations.t2_mask_075_pretrained_init": (
        "tipsv2_l14_distilled",
        {FROM: "pretrained", PARTS: "towers", MASK: 0.75},
    ),
    "tipsv2_ablations.t2_mask_0_text_trained": (
        "tipsv2_l14_distilled",
        {FROM: "pretrained", PARTS: "text"},
    ),
    "tipsv2_ablations.t2_mask_0_text_frozen": (
        "tipsv2_l14_distilled",
        {FROM: "pretrained", PARTS: "text"} | FROZEN_TEXT,
    ),
    "tipsv2_ablations.t4_tips": ("tips_g14", {"n_steps": 100_000}),
    "tipsv2_ablations.t4_ibot_plus_plus": (
        "tipsv2_ablations.t4_tips",
        {"self_supervision.patch_loss": "ibot++"},
    ),
    "tipsv2_ablations.t4_multi_granularity": (
        "tipsv2_ablations.t4_ibot_plus_plus",
        {f"{CAPTIONS}.coco": 0.5, f"{CAPTIONS}.gemini": 0.5},
    ),
    "tipsv2_ablations.t4_head_only_ema": (
        "tipsv2_ablations.t4_multi_granularity",
        {"self_supervision.ema": "head"},
    ),
    "tipsv2_ablations.t9_clip": (
        "tips_table1.clip",
        {
            "model.vision.width": 1024,
            "model.vision.n_layers": 24,
            "model.vision.n_heads": 16,
            "model.vision.mlp_dim": 4096,
            "model.text.width": 1024,
            "model.text.n_heads": 16,
            "model.text.mlp_dim": 4096,
        },
    ),
    "tipsv2_ablations.t9_clip_ibot_plus_plus": ("tipsv2_ablations.t9_clip", PATCHES),
    "tipsv2_ablations.t10_head_only_ema": (
        "tipsv2_ablations.t9_clip",
        PATCHES | {"self_supervision.ema": "head"},
    ),
    "tipsv2_ablations.t11_clip": ("tips_g14", NO_TERMS),
    "tipsv2_ablations.t11_clip_ibot_plus_plus": ("tipsv2_ablations.t11_clip", PATCHES),
    "tipsv2_ablations.t12_mask_050": ("tipsv2_g14", {MASK: 0.5}),
    "tipsv2_ablations.t12_mask_025": ("tipsv2_g14", {MASK: 0.25}),
    "tipsv2_ablations.t12_mask_000": ("tipsv2_g14", {MASK: 0.0}),
    "tipsv2_ablations.t13_two_captioners": ("tipsv2_g14", {}),
    "tipsv2_ablations.t13_paligemma": (
        "tipsv2_g14",
        {f"{CAPTIONS}.coco": 1.0, f"{CAPTIONS}.gemini": None},
    ),
    "tipsv2_ablations.t13_gemini": (
        "tipsv2_g14",
        {f"{CAPTIONS}.coco": None, f"{CAPTIONS}.gemini": 1.0},
    ),
    "lit_b14": (
        "tips_table1.clip",
        {FROM: "trained", PARTS: "vision", "optimizer.frozen": ["vision/.*"]},
    ),
    "silc_b14": (
        "tips_b14",
        pairs((1, ALT))
        | {
            "self_supervision.patch_weight": 0.0,
            "self_supervision.final_ema_decay": 0.994,
        },
    ),
    "siglip_b14": (
        "tips_table1.clip",
        {"model.contrastive_loss": "sigmoid", "model.initial_temperature": 0.1},
    ),
    "tipsv2_g14_gram": (
        "tipsv2_g14_highres",
        {
            "terms": [
                {
                    "term": "trainer.step.terms.gram:Gram",
                    "weight": 2.0,
                    "settings": {},
                }
            ]
        },
    ),
}


def plain(name: str) -> dict:
    config = importlib.import_module(f"trainer.configs.{name}").get_config()
    return config_files.to_dict(config)


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_changes_what_its_row_says_and_nothing_else(name):
    reference, expected = ARMS[name]
    found = config_files.differences(plain(reference), plain(name))
    assert {field: new for field, _, new in found} == expected


@pytest.mark.parametrize("name", ARMS)
def test_the_file_of_a_workdir_gives_the_arm_again(name):
    values = plain(name)
    assert config_files.to_dict(config_files.from_dict(TrainConfig, values)) == values


def test_every_arm_has_its_reference():
    files = {
        f"{folder}.{path.stem}"
        for folder in FOLDERS
        for path in (CONFIGS / folder).glob("*.py")
        if path.stem != "__init__"
    }
    assert files == {name for name in ARMS if "." in name}
