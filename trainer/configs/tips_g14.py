"""TIPS g/14 at low resolution.

Paper: arXiv:2410.16512, section 4. Theirs: the model (SwiGLU, 40 layers), batch 16,384,
15 epochs of 116 million images (about 107,000 steps); 512 TPUv5 chips for 2 days. What
is ours stands in `tips_b14.py`. `tips_g14_highres.py` goes on from its end.
"""

import dataclasses

from trainer.config import ComputeConfig, Remat, TrainConfig, tips_model
from trainer.configs import tips_b14


def get_config() -> TrainConfig:
    """TIPS g/14, 107,000 steps at 224 px."""
    return dataclasses.replace(
        tips_b14.get_config(),
        model=tips_model("g/14"),
        n_steps=107_000,
        compute=ComputeConfig(
            dtype="bfloat16", remat=Remat.FULL, scan_layers=True, n_fsdp=8
        ),
    )
