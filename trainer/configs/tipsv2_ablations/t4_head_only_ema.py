"""Table 4: and a teacher that averages the head alone."""

import dataclasses

from trainer.config import Ema, TrainConfig
from trainer.configs.tipsv2_ablations import t4_multi_granularity


def get_config() -> TrainConfig:
    """The encoder is the student's."""
    reference = t4_multi_granularity.get_config()
    return dataclasses.replace(
        reference,
        self_supervision=dataclasses.replace(reference.self_supervision, ema=Ema.HEAD),
    )
