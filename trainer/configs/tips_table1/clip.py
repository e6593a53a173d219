"""Row A of table 1: CLIP on alt texts, the reference of the other rows."""

import dataclasses

from trainer.config import ContrastivePair, Text, TrainConfig
from trainer.configs import tips_b14


def get_config() -> TrainConfig:
    """One token, alt text, no self-supervision."""
    reference = tips_b14.get_config()
    return dataclasses.replace(
        reference,
        contrastive=(ContrastivePair(token=1, text=Text.ALT_TEXT, weight=1.0),),
        self_supervision=dataclasses.replace(
            reference.self_supervision, distillation_weight=0.0, patch_weight=0.0
        ),
    )
