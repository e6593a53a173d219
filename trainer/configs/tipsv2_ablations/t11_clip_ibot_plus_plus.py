"""Table 11: CLIP g/14 with two CLS tokens and iBOT++."""

import dataclasses

from trainer.config import PatchLoss, TrainConfig
from trainer.configs.tipsv2_ablations import t11_clip


def get_config() -> TrainConfig:
    """CLIP and patches."""
    reference = t11_clip.get_config()
    return dataclasses.replace(
        reference,
        self_supervision=dataclasses.replace(
            reference.self_supervision,
            patch_weight=2.0,
            patch_loss=PatchLoss.IBOT_PLUS_PLUS,
        ),
    )
