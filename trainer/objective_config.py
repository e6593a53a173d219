"""What a run trains: the terms of its loss, as dataclasses that check themselves.

Recipes import these names from `trainer.config`, which has the other settings.
"""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Literal, Protocol

from recipes.settings import Settings
from recipes.validation import require, require_positive
from trainer.model_config import ContrastiveLoss, ModelConfig


class Text(enum.StrEnum):
    """The texts of a batch, one of each kind for an image."""

    ALT_TEXT = "alt_text"
    SYNTHETIC_CAPTION = "synthetic_caption"  # drawn by `data.granularity_weights`


class PatchLoss(enum.StrEnum):
    """The patches that the patch loss counts."""

    IBOT = "ibot"  # masked patches only (TIPS)
    IBOT_PLUS_PLUS = "ibot++"  # all patches (TIPSv2)


class PatchReduction(enum.StrEnum):
    """How the patches of iBOT++ are averaged; the paper does not say."""

    MEAN = "mean"  # over all patches
    SEPARATE = "separate"  # masked and visible ones separately, then weighted


class Ema(enum.StrEnum):
    """The part of the student of which the teacher is a moving average."""

    FULL = "full"  # image encoder and head (TIPS)
    HEAD = "head"  # the head; the encoder is the student's own (TIPSv2)
    FROZEN = "frozen"  # nothing: another, trained model teaches (distillation)


class AntiCollapse(enum.StrEnum):
    """The way to keep the teacher from assigning one prototype to all images."""

    CENTERING = "centering"  # DINO's, of both papers
    SINKHORN = "sinkhorn"  # DINOv2's


class Masking(enum.StrEnum):
    """Which patches are hidden from the student."""

    RANDOM = "random"
    BLOCK = "block"  # rectangles, as in BEiT and iBOT


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastivePair(Settings):
    """A CLS token and the text that it is compared with over the whole batch.

    Each kind of text has a temperature of its own, and a bias for the sigmoid loss.
    """

    token: Literal[1, 2]  # number of the CLS token
    text: Text  # the kind that it is compared with
    weight: float  # in the total
    loss: ContrastiveLoss | None = None  # None: `model.contrastive_loss`

    def __post_init__(self):
        require_positive(self, "weight")


# Of both papers: the mean of two terms.
TWO_TOKENS = (
    ContrastivePair(token=1, text=Text.ALT_TEXT, weight=0.5),
    ContrastivePair(token=2, text=Text.SYNTHETIC_CAPTION, weight=0.5),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddedTerm(Settings):
    """A term beside the contrastive ones and those of `self_supervision`.

    Its class is a frozen dataclass, one of `trainer.step.terms` or of a module of your
    own.
    """

    term: str  # MODULE:CLASS
    weight: float  # in the total
    # Field of the class to its value.
    settings: Mapping[str, int | float | str | bool] = dataclasses.field(
        default_factory=dict
    )

    def __post_init__(self):
        require_positive(self, "weight")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfSupervisionConfig(Settings):
    """Self-distillation from the global crop to local crops, and masked patches.

    Weights, the mask ratio and the losses are the papers' (arXiv:2410.16512, section 3;
    arXiv:2604.12012). The papers do not give temperatures, momenta and decays: those
    are DINO's and iBOT's. With both weights 0 there is no self-supervision.
    """

    distillation_weight: float = 1.0  # of the term of the local crops
    patch_weight: float = 2.0  # of the term of the patches
    patch_loss: PatchLoss = PatchLoss.IBOT_PLUS_PLUS  # which patches count
    patch_reduction: PatchReduction = PatchReduction.MEAN
    visible_weight: float = (
        1.0  # of visible patches; that of masked ones is 1; SEPARATE only
    )
    mask_ratio: float = 0.75  # 0: the student's patches are those of the whole view
    masking: Masking = Masking.RANDOM  # which patches are hidden
    ema: Ema = Ema.HEAD
    # CLS 1 of the student's global crop is compared with the teacher's too. With an EMA
    # teacher that compares a view with itself; with a frozen one it is distillation,
    # whose form the papers do not give.
    is_global_crop_distilled: bool = False
    ema_decay: float = 0.994  # at the first step; cosine to the last
    final_ema_decay: float = 0.996  # at the last step
    anti_collapse: AntiCollapse = AntiCollapse.CENTERING
    center_momentum: float = 0.9  # weight of the old center in the new one
    student_temperature: float = 0.1  # divides the student's prototype scores
    initial_teacher_temperature: float = 0.04  # at the first step of its warm-up
    teacher_temperature: float = 0.07  # after its warm-up
    n_teacher_warmup_steps: int = 0  # from the initial teacher temperature, linearly
    n_prototypes_per_chunk: int = 4096  # whose logits of all tokens exist at a time

    def __post_init__(self):
        for name in ("distillation_weight", "patch_weight", "visible_weight"):
            value = getattr(self, name)
            require(value >= 0, f"{name}={value}", "0 or more")
        for name in ("mask_ratio", "ema_decay", "final_ema_decay", "center_momentum"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name}={value}", "0 <= value <= 1")
        for name in (
            "student_temperature",
            "initial_teacher_temperature",
            "teacher_temperature",
            "n_prototypes_per_chunk",
        ):
            require_positive(self, name)
        n = self.n_teacher_warmup_steps
        require(n >= 0, f"n_teacher_warmup_steps={n}", "0 or more")
        self._check_effects()

    def _check_effects(self) -> None:
        """Refuses values that no term would read."""
        is_ibot = self.patch_loss is PatchLoss.IBOT
        require(
            self.patch_weight == 0 or self.mask_ratio > 0 or not is_ibot,
            f"mask_ratio={self.mask_ratio}",
            "more than 0 with patch_loss=ibot, which counts hidden patches alone",
        )
        is_separate = self.patch_reduction is PatchReduction.SEPARATE
        require(
            not (is_separate and is_ibot),
            "patch_reduction=separate",
            "mean with patch_loss=ibot, which counts hidden patches alone",
        )
        require(
            self.visible_weight == 1 or is_separate,
            f"visible_weight={self.visible_weight}",
            "1 without patch_reduction=separate, which alone reads it",
        )
        require(
            self.distillation_weight > 0 or not self.is_global_crop_distilled,
            "is_global_crop_distilled=True",
            "False with distillation_weight=0, whose term alone reads it",
        )

    @property
    def is_on(self) -> bool:
        """Whether any term has a weight."""
        return self.distillation_weight > 0 or self.patch_weight > 0

    def require_averaged_encoder(self, name: str) -> None:
        """Raises ValueError unless the teacher has an image encoder that is averaged.

        `name` is the setting, with its value, that asks for it.
        """
        found = f"self_supervision.ema={self.ema}" if self.is_on else "none"
        require(
            self.is_on and self.ema is Ema.FULL,
            name,
            f"student with {found}: the teacher has no average of the image encoder",
        )


class _Objective(Protocol):
    """The fields of a `TrainConfig` that say what is trained."""

    @property
    def contrastive(self) -> tuple[ContrastivePair, ...]: ...
    @property
    def self_supervision(self) -> SelfSupervisionConfig: ...
    @property
    def terms(self) -> tuple[AddedTerm, ...]: ...
    @property
    def model(self) -> ModelConfig: ...


def check_objective(config: _Objective) -> None:
    """Raises ValueError if terms repeat each other, or train nothing."""
    pairs, ssl = config.contrastive, config.self_supervision
    require(
        bool(pairs or config.terms) or ssl.is_on,
        "contrastive=()",
        "at least one pair, or a weight of self_supervision of more than 0",
    )
    require(
        ssl.is_on or ssl.ema is not Ema.FROZEN,
        "self_supervision.ema=frozen",
        "a weight of self_supervision of more than 0, for the teacher to teach",
    )
    compared = [(pair.token, pair.text) for pair in pairs]
    require(
        len(set(compared)) == len(compared),
        f"contrastive={[f'{text} with token {token}' for token, text in compared]}",
        "pairs that differ",
    )
    own = config.model.contrastive_loss
    is_sigmoid = [(pair.loss or own) is ContrastiveLoss.SIGMOID for pair in pairs]
    if own is ContrastiveLoss.SIGMOID:
        require(
            any(is_sigmoid),
            "model.contrastive_loss=sigmoid",
            "a pair of contrastive with this loss, or info_nce",
        )
    else:
        require(
            not any(is_sigmoid),
            "contrastive: loss=sigmoid",
            "model.contrastive_loss=sigmoid, which makes the biases",
        )
