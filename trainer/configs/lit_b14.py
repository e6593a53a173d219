"""LiT's set-up at B/14: a trained image encoder stays, and a text encoder learns it.

Paper: Zhai et al. 2022 (LiT), arXiv:2111.07991. Theirs: the image encoder is frozen,
the text encoder starts from scratch, and the loss is contrastive with alt texts. Ours:
the image encoder is that of a TIPS model, whose CLS 1 is compared, and the sizes and
the schedule are those of `tips_b14.py`.

    python -m trainer.train --config trainer/configs/lit_b14.py --data ... \\
        --workdir DIR --set init_from=WORKDIR_OR_EXPORT
"""

import dataclasses

from trainer.config import InitParts, TrainConfig
from trainer.configs.tips_table1 import clip


def get_config() -> TrainConfig:
    """CLIP B/14 whose image encoder is frozen."""
    reference = clip.get_config()
    return dataclasses.replace(
        reference,
        init_from="trained",  # a workdir or an export, from the command line
        init_parts=InitParts.VISION,
        optimizer=dataclasses.replace(reference.optimizer, frozen=("vision/.*",)),
    )
