"""Row D of table 1: all of TIPS, which is `tips_b14.py`."""

from trainer.config import TrainConfig
from trainer.configs import tips_b14


def get_config() -> TrainConfig:
    """Two tokens, self-distillation, masked patches."""
    return tips_b14.get_config()
