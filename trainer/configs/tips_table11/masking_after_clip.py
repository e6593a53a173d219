"""Table 11: masked patches in a phase after the contrastive one.

Start it from a run of `tips_table1/dual.py` with `init_from`. How long each phase
is, and what else it trains, we do not know; here it is masked patches alone.
"""

import dataclasses

from trainer.config import InitParts, TrainConfig
from trainer.configs import tips_b14


def get_config() -> TrainConfig:
    """Masked patches alone."""
    reference = tips_b14.get_config()
    return dataclasses.replace(
        reference,
        contrastive=(),
        init_parts=InitParts.TOWERS,
        self_supervision=dataclasses.replace(
            reference.self_supervision, distillation_weight=0.0
        ),
        optimizer=dataclasses.replace(reference.optimizer, is_text_frozen=True),
    )
