"""Table 12: a mask ratio of 0; 0.75 is `tipsv2_g14.py` and the best.

Which ratios the table has besides 0 we do not know.
"""

import dataclasses

from trainer.config import TrainConfig
from trainer.configs import tipsv2_g14


def get_config() -> TrainConfig:
    """TIPSv2 g/14 with a mask ratio of 0."""
    reference = tipsv2_g14.get_config()
    return dataclasses.replace(
        reference,
        self_supervision=dataclasses.replace(
            reference.self_supervision, mask_ratio=0.0
        ),
    )
