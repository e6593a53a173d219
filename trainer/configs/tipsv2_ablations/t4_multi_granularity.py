"""Table 4: and captions of two granularities in turn."""

import dataclasses

from trainer.config import TrainConfig
from trainer.configs.tipsv2_ablations import t4_ibot_plus_plus


def get_config() -> TrainConfig:
    """PaliGemma's and Gemini's captions."""
    reference = t4_ibot_plus_plus.get_config()
    return dataclasses.replace(
        reference,
        data=dataclasses.replace(
            reference.data, granularity_weights={"coco": 0.5, "gemini": 0.5}
        ),
    )
