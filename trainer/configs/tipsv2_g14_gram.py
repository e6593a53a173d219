"""A phase with Gram anchoring after TIPSv2 g/14: patches keep the cosines they had.

Paper: Simeoni et al. 2025 (DINOv3), arXiv:2508.10104, which anchors a model trained by
self-supervision; weight 2, a new Gram teacher every 10,000 steps. Ours: that it follows
TIPSv2. The length and the batch are those of `tipsv2_g14_highres.py`.

    python -m trainer.train --config trainer/configs/tipsv2_g14_gram.py --data ... \\
        --workdir DIR --set init_from=WORKDIR_OF_TIPSV2_G14
"""

import dataclasses

from trainer.config import AddedTerm, TrainConfig
from trainer.configs import tipsv2_g14_highres


def get_config() -> TrainConfig:
    """The phase of high resolution with one term more."""
    gram = AddedTerm(term="trainer.step.terms.gram:Gram", weight=2.0)
    return dataclasses.replace(tipsv2_g14_highres.get_config(), terms=(gram,))
