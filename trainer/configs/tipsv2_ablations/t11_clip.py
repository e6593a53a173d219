"""Table 11: CLIP g/14 with two CLS tokens."""

import dataclasses

from trainer.config import TrainConfig
from trainer.configs import tips_g14


def get_config() -> TrainConfig:
    """Both contrastive terms of TIPS g/14 alone."""
    reference = tips_g14.get_config()
    return dataclasses.replace(
        reference,
        self_supervision=dataclasses.replace(
            reference.self_supervision, distillation_weight=0.0, patch_weight=0.0
        ),
    )
