"""Table 2: a student with hidden patches whose encoders start trained."""

import dataclasses

from trainer.config import TrainConfig
from trainer.configs.tipsv2_ablations import t2_mask_0_pretrained_init


def get_config() -> TrainConfig:
    """The trained student with a mask ratio of 0.75."""
    reference = t2_mask_0_pretrained_init.get_config()
    return dataclasses.replace(
        reference,
        self_supervision=dataclasses.replace(
            reference.self_supervision, mask_ratio=0.75
        ),
    )
