"""The settings of an evaluation. Defaults are the papers' where those are known."""

import dataclasses
import enum

from recipes.settings import Settings
from trainer.split_names import parse_split


class PromptSet(enum.StrEnum):
    """Sentences around class names; see `evals.scores.zero_shot_classification`."""

    PLAIN = "plain"
    CLIP = "clip"
    TCL = "tcl"


class Weights(enum.StrEnum):
    """Whose image encoder is measured or exported; texts are the student's."""

    STUDENT = "student"
    TEACHER = "teacher"  # the moving average of it, with ema=full


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Settings):
    """Settings of all tasks; each reads those that it needs."""

    weights: Weights = Weights.STUDENT
    # Of images: squares, or the short side in zero-shot segmentation. 0 is the size of
    # the global crops that the checkpoint was trained with.
    size_px: int = 0
    prompts: PromptSet = PromptSet.PLAIN  # zero-shot classification
    # JSON list of the names of classes, or an object from folder, number or WordNet id
    # to name; "": those of the data.
    classes: str = ""
    scored_split: str = ""  # such as "validation"; "": test, or validation without one
    # The value of the first name in masks: 0 or 1; -1: 1, or 0 of a "background".
    masks_from: int = -1
    # The next ones are for decoders: linear probes of segmentation and depth, and DPT.
    n_steps: int = 1000  # of their training
    batch_size: int = 16  # of their training
    learning_rate: float = 1e-3  # AdamW's highest, then cosine to 0
    weight_decay: float = 1e-4  # AdamW's
    dpt_channels: int = 256  # in DPT's fusion, as the released heads have
    dpt_from: str = ""  # file of a DPT head to measure; "": one is trained
    dpt_to: str = ""  # file for the one that is trained: .zip Scenic's, .npz PyTorch's
    min_depth_m: float = 0.001  # of the bins of depth, meters
    max_depth_m: float = 10.0  # of the bins of depth, meters
    rng_seed: int = 0  # of the images drawn in training

    def __post_init__(self):
        for name in ("n_steps", "batch_size", "learning_rate", "dpt_channels"):
            self._require(name, getattr(self, name) > 0, "more than 0")
        for name in ("size_px", "weight_decay", "rng_seed"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        if self.scored_split:
            parse_split(self.scored_split)
        self._require("masks_from", self.masks_from in (-1, 0, 1), "-1, 0 or 1")
        self._require("min_depth_m", self.min_depth_m > 0, "more than 0")
        expected = f"more than min_depth_m={self.min_depth_m}"
        self._require("max_depth_m", self.max_depth_m > self.min_depth_m, expected)

    def _require(self, name: str, is_met: bool, expected: str) -> None:
        if not is_met:
            raise ValueError(f"{name}={getattr(self, name)}: expected {expected}")
