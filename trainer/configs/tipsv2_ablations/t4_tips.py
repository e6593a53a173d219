"""Tables 3 and 4: TIPS g/14 again, 100,000 steps at 224 px.

Batch and schedule are those of `tips_g14.py`.
"""

import dataclasses

from trainer.config import TrainConfig
from trainer.configs import tips_g14


def get_config() -> TrainConfig:
    """TIPS g/14 for 100,000 steps."""
    reference = tips_g14.get_config()
    return dataclasses.replace(
        reference,
        n_steps=100_000,
    )
