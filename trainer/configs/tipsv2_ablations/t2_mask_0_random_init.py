"""Table 2: no masks, the student starts at random; `tipsv2_l14_distilled.py`."""

from trainer.config import TrainConfig
from trainer.configs import tipsv2_l14_distilled


def get_config() -> TrainConfig:
    """TIPSv2 L/14, a student."""
    return tipsv2_l14_distilled.get_config()
