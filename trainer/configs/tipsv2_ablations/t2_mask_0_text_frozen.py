"""Table 2: a student whose text encoder is a trained one, and frozen."""

import dataclasses

from trainer.config import TrainConfig
from trainer.configs.tipsv2_ablations import t2_mask_0_text_trained


def get_config() -> TrainConfig:
    """The student with a frozen text encoder."""
    reference = t2_mask_0_text_trained.get_config()
    return dataclasses.replace(
        reference,
        optimizer=dataclasses.replace(reference.optimizer, is_text_frozen=True),
    )
