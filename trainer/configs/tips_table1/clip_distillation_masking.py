"""Row C of table 1: CLIP on alt texts, self-distillation, masked patches."""

import dataclasses

from trainer.config import TrainConfig
from trainer.configs.tips_table1 import clip_distillation


def get_config() -> TrainConfig:
    """Row A with both terms of self-supervision."""
    reference = clip_distillation.get_config()
    return dataclasses.replace(
        reference,
        self_supervision=dataclasses.replace(
            reference.self_supervision, patch_weight=2.0
        ),
    )
