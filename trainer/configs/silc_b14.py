"""SILC's set-up at B/14: alt texts, and self-distillation from global to local crops.

Paper: Naeem et al. 2023, arXiv:2310.13355. Theirs: a contrastive term and DINO's, and
an EMA teacher whose momentum stays. Ours: one global crop in place of two, the sizes
and the schedule of `tips_b14.py`, the momentum's value.
"""

import dataclasses

from trainer.config import ContrastivePair, Text, TrainConfig
from trainer.configs import tips_b14


def get_config() -> TrainConfig:
    """Contrastive and distillation, without patches."""
    reference = tips_b14.get_config()
    decay = reference.self_supervision.ema_decay
    return dataclasses.replace(
        reference,
        contrastive=(ContrastivePair(token=1, text=Text.ALT_TEXT, weight=1.0),),
        self_supervision=dataclasses.replace(
            reference.self_supervision, patch_weight=0.0, final_ema_decay=decay
        ),
    )
