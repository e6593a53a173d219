"""Row B of table 1: one token against both texts."""

import dataclasses

from trainer.config import ContrastivePair, Text, TrainConfig
from trainer.configs.tips_table1 import clip


def get_config() -> TrainConfig:
    """One token, both texts."""
    reference = clip.get_config()
    return dataclasses.replace(
        reference,
        contrastive=(
            ContrastivePair(token=1, text=Text.ALT_TEXT, weight=0.5),
            ContrastivePair(token=1, text=Text.SYNTHETIC_CAPTION, weight=0.5),
        ),
    )
