"""Row B of table 1: CLIP on synthetic captions alone."""

import dataclasses

from trainer.config import ContrastivePair, Text, TrainConfig
from trainer.configs.tips_table1 import clip


def get_config() -> TrainConfig:
    """One token, synthetic captions."""
    reference = clip.get_config()
    return dataclasses.replace(
        reference,
        contrastive=(
            ContrastivePair(token=1, text=Text.SYNTHETIC_CAPTION, weight=1.0),
        ),
    )
