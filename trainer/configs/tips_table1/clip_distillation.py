"""Row C of table 1: CLIP on alt texts with self-distillation."""

import dataclasses

from trainer.config import TrainConfig
from trainer.configs.tips_table1 import clip


def get_config() -> TrainConfig:
    """Row A with the term of the local crops."""
    reference = clip.get_config()
    return dataclasses.replace(
        reference,
        self_supervision=dataclasses.replace(
            reference.self_supervision, distillation_weight=1.0
        ),
    )
