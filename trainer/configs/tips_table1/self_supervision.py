"""Self-distillation and masked patches alone, without any text.

The text encoder is frozen, as nothing trains it.
"""

import dataclasses

from trainer.config import TrainConfig
from trainer.configs import tips_b14


def get_config() -> TrainConfig:
    """DINO's and iBOT's terms, with one global crop."""
    reference = tips_b14.get_config()
    return dataclasses.replace(
        reference,
        contrastive=(),
        optimizer=dataclasses.replace(reference.optimizer, is_text_frozen=True),
    )
