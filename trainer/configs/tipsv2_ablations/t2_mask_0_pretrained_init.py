"""Table 2: a student whose encoders start trained.

The start is a trained L/14, from the command line.
"""

import dataclasses

from trainer.config import InitParts, TrainConfig
from trainer.configs.tipsv2_ablations import t2_mask_0_random_init


def get_config() -> TrainConfig:
    """The student from trained encoders."""
    reference = t2_mask_0_random_init.get_config()
    return dataclasses.replace(
        reference,
        init_from="pretrained",
        init_parts=InitParts.TOWERS,
    )
