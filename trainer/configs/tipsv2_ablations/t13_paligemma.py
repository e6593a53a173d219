"""Table 13: CLS 2 gets captions of PaliGemma alone.

Of this table we know the best row; this one is our reading of its text.
"""

import dataclasses

from trainer.config import TrainConfig
from trainer.configs import tipsv2_g14


def get_config() -> TrainConfig:
    """One captioner."""
    reference = tipsv2_g14.get_config()
    return dataclasses.replace(
        reference,
        data=dataclasses.replace(reference.data, granularity_weights={"coco": 1.0}),
    )
