"""Table 10: CLIP L/14 with iBOT++ and an EMA of the head alone."""

import dataclasses

from trainer.config import Ema, TrainConfig
from trainer.configs.tipsv2_ablations import t9_clip_ibot_plus_plus


def get_config() -> TrainConfig:
    """The encoder is the student's."""
    reference = t9_clip_ibot_plus_plus.get_config()
    return dataclasses.replace(
        reference,
        self_supervision=dataclasses.replace(reference.self_supervision, ema=Ema.HEAD),
    )
