"""The optimizer of a run, as a dataclass that checks itself.

Recipes import these names from `trainer.config`, which has the other settings.
"""

import dataclasses
import enum
import re

from recipes.settings import Settings
from recipes.validation import require, require_positive


class Optimizer(enum.StrEnum):
    """The rule that turns gradients into updates."""

    ADAMW = "adamw"
    ADAFACTOR = "adafactor"


class Schedule(enum.StrEnum):
    """The learning rate after its warm-up."""

    COSINE = "cosine"  # to 0 at the last step
    RSQRT = "rsqrt"  # 1 / sqrt(step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Settings):
    """Linear warm-up from 0, a schedule, clipped gradients, decoupled weight decay."""

    learning_rate: float  # the highest
    n_warmup_steps: int  # from a learning rate of 0, linearly
    optimizer: Optimizer = Optimizer.ADAMW  # TIPSv2 names Adafactor
    schedule: Schedule = Schedule.COSINE
    weight_decay: float = 0.05  # times the learning rate; matrices only
    beta1: float = 0.9  # weight of the old mean of gradients
    beta2: float = 0.95  # of the old mean of their squares; AdamW
    # Adafactor's grows as 1 - step^-0.8 up to this cap (arXiv:2106.04560, section 3.4).
    beta2_cap: float = 0.999
    # Adafactor factors the squares of an array if two of its axes are this long: 32 is
    # big_vision's.
    min_factored: int = 32
    momentum_dtype: str = "bfloat16"  # or float32; Adafactor's mean, as it is kept
    max_gradient_norm: float = 1.0  # of all parameters together; more is scaled down
    clip_by_module: bool = False  # of each of vision, text, head ... by itself
    # Regular expressions; a parameter stays as it started if one of them matches its
    # whole path, such as `vision/.*` or `vision/.*/encoderblock_[0-3]/.*`.
    frozen: tuple[str, ...] = ()
    # Each block's learning rate over that of the next one, in both encoders: 1 is off,
    # DINOv2 and BEiT fine-tune with less.
    layer_decay: float = 1.0
    # First steps in which the prototypes do not learn; DINO's are those of an epoch.
    n_frozen_head_steps: int = 0
    # Leaves parameters, optimizer, teacher and centers as they are after a batch whose
    # loss or gradient is not finite, and goes on; such a batch stops the run otherwise.
    skip_nonfinite: bool = False
    is_text_frozen: bool = False  # short for `text/.*` in `frozen`

    def __post_init__(self):
        require_positive(self, "learning_rate")
        require_positive(self, "max_gradient_norm")
        for name in ("n_warmup_steps", "n_frozen_head_steps", "weight_decay"):
            value = getattr(self, name)
            require(value >= 0, f"{name}={value}", "0 or more")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name}={value}", "0 <= value < 1")
        cap = self.beta2_cap
        require(0 < cap <= 1, f"beta2_cap={cap}", "0 < value <= 1")
        require_positive(self, "min_factored")
        require(
            self.momentum_dtype in ("float32", "bfloat16"),
            f"momentum_dtype={self.momentum_dtype}",
            "float32 or bfloat16",
        )
        decay = self.layer_decay
        require(0 < decay <= 1, f"layer_decay={decay}", "0 < value <= 1")
        for number, pattern in enumerate(self.frozen):
            _require_pattern(f"frozen.{number}", pattern)

    @property
    def frozen_patterns(self) -> tuple[str, ...]:
        """`frozen`, and the pattern that `is_text_frozen` is short for."""
        return (*self.frozen, *(["text/.*"] if self.is_text_frozen else []))


def _require_pattern(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{name}={pattern}: expected a regular expression, {error}"
        ) from error
