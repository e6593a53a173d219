"""Row B of table 1: two tokens, each with its text."""

import dataclasses

from trainer.config import TWO_TOKENS, TrainConfig
from trainer.configs.tips_table1 import clip


def get_config() -> TrainConfig:
    """Two tokens, no self-supervision."""
    reference = clip.get_config()
    return dataclasses.replace(
        reference,
        contrastive=TWO_TOKENS,
    )
