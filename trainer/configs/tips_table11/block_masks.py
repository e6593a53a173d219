"""Table 11: rectangles of patches are hidden."""

import dataclasses

from trainer.config import Masking, TrainConfig
from trainer.configs import tips_b14


def get_config() -> TrainConfig:
    """TIPS B/14 with block-wise masks."""
    reference = tips_b14.get_config()
    return dataclasses.replace(
        reference,
        self_supervision=dataclasses.replace(
            reference.self_supervision, masking=Masking.BLOCK
        ),
    )
