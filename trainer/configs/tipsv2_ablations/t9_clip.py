"""Table 9: CLIP L/14 on alt texts; schedule and data are those of `tips_b14.py`."""

import dataclasses

from trainer.config import TrainConfig, tips_model
from trainer.configs.tips_table1 import clip


def get_config() -> TrainConfig:
    """CLIP L/14."""
    reference = clip.get_config()
    return dataclasses.replace(
        reference,
        model=tips_model("L/14"),
    )
