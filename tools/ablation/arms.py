"""The arms of the ablation and their expected effects, written down before running.

An arm changes one value of its reference; `base` (see `tools.ablation.base`) has no
reference. Directions are those of the papers: TIPS, arXiv:2410.16512, table 1; TIPSv2,
arXiv:2604.12012, tables 1 to 4. Effects that the papers do not measure are marked.
"""

import dataclasses
import enum
import pathlib
from collections.abc import Mapping

from tools.ablation.web import WebSize
from trainer import config_files

BASE = "base"
CURATED, RAW = "curated", "raw"
CONFIG = pathlib.Path(__file__).with_name("base.py")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train; `change` is `a.b=value`, a field of `TrainConfig`."""

    name: str
    reference: str = ""  # the arm whose value it changes
    change: str = ""
    shards: str = CURATED
    teacher: str = ""  # the arm of the teacher, for `teacher_from`


_ARMS = (
    Arm(BASE),
    Arm("ibot", BASE, "self_supervision.patch_loss=ibot"),
    Arm("alt_only", BASE, "data.granularity_weights={}"),
    Arm("full_ema", BASE, "self_supervision.ema=full"),
    Arm("one_granularity", BASE, "data.granularity_weights={'medium': 1.0}"),
    Arm("raw", "alt_only", shards=RAW),
    Arm("no_patches", BASE, "self_supervision.patch_weight=0.0"),
    Arm("contrastive", "no_patches", "self_supervision.distillation_weight=0.0"),
    Arm("student_masked", BASE, "self_supervision.ema=frozen", teacher="ibot"),
    Arm(
        "student",
        "student_masked",
        "self_supervision.mask_ratio=0.0",
        teacher="ibot",
    ),
)
ARMS = {arm.name: arm for arm in _ARMS}


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of web and training; `overrides` change the base configuration."""

    web: WebSize
    overrides: tuple[str, ...] = ()


_SMALL_WEB = WebSize(n_pairs=8000, n_names=256, n_shapes=384)
SIZES = {
    "small": Size(_SMALL_WEB),
    "long": Size(_SMALL_WEB, ("n_steps=4000", "run.n_steps_per_checkpoint=500")),
    # Not run: for a machine with a GPU.
    "full": Size(
        WebSize(n_pairs=100_000, n_names=1000, n_shapes=2000),
        (
            "model.vision.width=384",
            "model.vision.n_heads=6",
            "model.vision.mlp_dim=1536",
            "model.vision.n_layers=12",
            "model.text.width=384",
            "model.text.n_heads=6",
            "model.text.mlp_dim=1536",
            "model.text.n_layers=6",
            "model.head.n_prototypes=4096",
            "model.head.hidden_dim=1024",
            "model.head.bottleneck_dim=256",
            "data.batch_size=512",
            "data.n_local_crops=6",
            "optimizer.learning_rate=0.0005",
            "optimizer.n_warmup_steps=1000",
            "n_steps=20000",
            "compute.dtype=bfloat16",
            "run.n_workers=12",
            "run.n_steps_per_log=100",
            "run.evaluation.n_steps=1000",
        ),
    ),
    # For tests; it learns nothing.
    "tiny": Size(
        WebSize(n_pairs=150, n_names=12, n_shapes=64),
        (
            "model.vision.n_layers=1",
            "data.batch_size=16",
            "optimizer.n_warmup_steps=1",
            "n_steps=3",
            "run.evaluation.n_steps=3",
        ),
    ),
}


class Expected(enum.StrEnum):
    """The direction of an effect."""

    HIGHER = "higher"
    LOWER = "lower"
    EQUAL = "equal"


@dataclasses.dataclass(frozen=True)
class Effect:
    """The expected difference of `arm` from `against`, by measure."""

    key: str
    title: str
    arm: str
    against: str
    measures: dict[str, Expected]


_ZERO_SHOT = ("zero_shot_color_miou", "zero_shot_miou")
_RETRIEVAL = ("image_to_text", "text_to_image")
_QUALITIES = (*_ZERO_SHOT, "linear_miou", *_RETRIEVAL)

EFFECTS = (
    Effect(
        "a",
        "iBOT++ against iBOT",
        BASE,
        "ibot",
        dict.fromkeys(_ZERO_SHOT, Expected.HIGHER),
    ),
    Effect(
        "b",
        "synthetic captions with a second CLS token against alt text alone",
        BASE,
        "alt_only",
        dict.fromkeys(("linear_miou", *_RETRIEVAL), Expected.HIGHER),
    ),
    Effect(
        "c",
        "head-only EMA against full EMA",
        BASE,
        "full_ema",
        {
            **dict.fromkeys(_QUALITIES, Expected.EQUAL),
            "state_bytes": Expected.LOWER,
        },
    ),
    Effect(
        "d",
        "mixed granularities against one",
        BASE,
        "one_granularity",
        dict.fromkeys((*_ZERO_SHOT, *_RETRIEVAL), Expected.HIGHER),
    ),
    # Not in the papers. Arms with alt text alone: true captions of every picture would
    # make up for wrong alt texts.
    Effect(
        "e",
        "curated against raw crawl",
        "alt_only",
        "raw",
        dict.fromkeys((*_ZERO_SHOT, *_RETRIEVAL), Expected.HIGHER),
    ),
    Effect(
        "f",
        "self-distillation and masking against contrastive alone",
        BASE,
        "contrastive",
        dict.fromkeys(_QUALITIES, Expected.HIGHER),
    ),
    Effect(
        "f, masking",
        "masking with self-distillation against self-distillation alone",
        BASE,
        "no_patches",
        {"linear_miou": Expected.HIGHER},
    ),
    Effect(
        "g",
        "a distilled student against its teacher, which was trained with iBOT",
        "student",
        "ibot",
        dict.fromkeys(_ZERO_SHOT, Expected.HIGHER),
    ),
    Effect(
        "g, masking",
        "distillation without masks against distillation with masks",
        "student",
        "student_masked",
        dict.fromkeys(_ZERO_SHOT, Expected.HIGHER),
    ),
)


def changes(arm: Arm) -> tuple[str, ...]:
    """All changes from the base configuration to an arm, as `a.b=value`."""
    before = changes(ARMS[arm.reference]) if arm.reference else ()
    return (*before, arm.change) if arm.change else before


def overrides(
    arm: Arm, size: Size, rng_seed: int, folders: Mapping[str, pathlib.Path]
) -> list[str]:
    """Values of `--set` for `trainer.train`.

    `folders` has the workdir of the arm's teacher by its name, and `tokenizer`.
    """
    taught = [f"teacher_from={folders[arm.teacher]}"] if arm.teacher else []
    return [
        *size.overrides,
        *changes(arm),
        *taught,
        f"data.tokenizer={folders['tokenizer']}",
        f"rng_seed={rng_seed}",
    ]


def settings(
    arm: Arm, size: Size, rng_seed: int, folders: Mapping[str, pathlib.Path]
) -> dict:
    """Everything that determines what an arm learns."""
    config = config_files.load(CONFIG, overrides(arm, size, rng_seed, folders))
    names = {"shards": arm.shards, "teacher": arm.teacher}
    return {
        "web": dataclasses.asdict(size.web),
        **names,
        **config_files.to_dict(config),
    }
