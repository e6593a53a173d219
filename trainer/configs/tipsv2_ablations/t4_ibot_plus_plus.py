"""Tables 3 and 4: TIPS g/14 with iBOT++."""

import dataclasses

from trainer.config import PatchLoss, TrainConfig
from trainer.configs.tipsv2_ablations import t4_tips


def get_config() -> TrainConfig:
    """All patches count."""
    reference = t4_tips.get_config()
    return dataclasses.replace(
        reference,
        self_supervision=dataclasses.replace(
            reference.self_supervision, patch_loss=PatchLoss.IBOT_PLUS_PLUS
        ),
    )
