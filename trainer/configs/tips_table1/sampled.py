"""Row B of table 1: one token, and either text at random.

Equal odds are ours.
"""

import dataclasses

from trainer.config import TrainConfig
from trainer.configs.tips_table1 import synthetic_only


def get_config() -> TrainConfig:
    """One token, alt text or synthetic caption."""
    reference = synthetic_only.get_config()
    return dataclasses.replace(
        reference,
        data=dataclasses.replace(
            reference.data, granularity_weights={"alt_text": 0.5, "coco": 0.5}
        ),
    )
