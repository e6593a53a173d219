"""Table 2: a student whose text encoder starts trained, and goes on.

The start is a trained L/14, from the command line.
"""

import dataclasses

from trainer.config import InitParts, TrainConfig
from trainer.configs.tipsv2_ablations import t2_mask_0_random_init


def get_config() -> TrainConfig:
    """The student with a trained text encoder."""
    reference = t2_mask_0_random_init.get_config()
    return dataclasses.replace(
        reference,
        init_from="pretrained",
        init_parts=InitParts.TEXT,
    )
