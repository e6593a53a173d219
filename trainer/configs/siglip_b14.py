"""SigLIP's loss at B/14, on CLS 1 and alt texts.

Paper: Zhai et al. 2023, arXiv:2303.15343: the pairwise sigmoid loss, a temperature of
0.1 and a bias of -10 at the start. Ours: sizes and schedule of `tips_b14.py`. For the
loss on one of two tokens, give the other pair `loss=ContrastiveLoss.INFO_NCE`.
"""

import dataclasses

from trainer.config import ContrastiveLoss, TrainConfig
from trainer.configs.tips_table1 import clip


def get_config() -> TrainConfig:
    """CLIP B/14 with the sigmoid loss."""
    reference = clip.get_config()
    model = dataclasses.replace(
        reference.model,
        contrastive_loss=ContrastiveLoss.SIGMOID,
        initial_temperature=0.1,
    )
    return dataclasses.replace(reference, model=model)
