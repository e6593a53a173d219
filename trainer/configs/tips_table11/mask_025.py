"""Table 11: a quarter of the patches is hidden."""

import dataclasses

from trainer.config import TrainConfig
from trainer.configs import tips_b14


def get_config() -> TrainConfig:
    """TIPS B/14 with a mask ratio of 0.25."""
    reference = tips_b14.get_config()
    return dataclasses.replace(
        reference,
        self_supervision=dataclasses.replace(
            reference.self_supervision, mask_ratio=0.25
        ),
    )
