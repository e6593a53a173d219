"""Table 11: half of the patches are hidden."""

import dataclasses

from trainer.config import TrainConfig
from trainer.configs import tips_b14


def get_config() -> TrainConfig:
    """TIPS B/14 with a mask ratio of 0.5."""
    reference = tips_b14.get_config()
    return dataclasses.replace(
        reference,
        self_supervision=dataclasses.replace(
            reference.self_supervision, mask_ratio=0.5
        ),
    )
