"""Table 13: CLS 2 gets captions of PaliGemma and Gemini in turn; `tipsv2_g14.py`."""

from trainer.config import TrainConfig
from trainer.configs import tipsv2_g14


def get_config() -> TrainConfig:
    """The best row."""
    return tipsv2_g14.get_config()
