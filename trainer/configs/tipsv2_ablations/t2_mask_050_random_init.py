"""Table 2: a student with half of its patches hidden, as one of our sources has it."""

import dataclasses

from trainer.config import TrainConfig
from trainer.configs.tipsv2_ablations import t2_mask_0_random_init


def get_config() -> TrainConfig:
    """The student with a mask ratio of 0.5."""
    reference = t2_mask_0_random_init.get_config()
    return dataclasses.replace(
        reference,
        self_supervision=dataclasses.replace(
            reference.self_supervision, mask_ratio=0.5
        ),
    )
