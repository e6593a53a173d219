"""Table 9: CLIP L/14 with iBOT++ and an EMA of encoder and head."""

import dataclasses

from trainer.config import PatchLoss, TrainConfig
from trainer.configs.tipsv2_ablations import t9_clip


def get_config() -> TrainConfig:
    """CLIP and patches."""
    reference = t9_clip.get_config()
    return dataclasses.replace(
        reference,
        self_supervision=dataclasses.replace(
            reference.self_supervision,
            patch_weight=2.0,
            patch_loss=PatchLoss.IBOT_PLUS_PLUS,
        ),
    )
