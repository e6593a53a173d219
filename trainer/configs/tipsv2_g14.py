"""TIPSv2 g/14 at low resolution.

Paper: arXiv:2604.12012. Theirs: the model, batch 8,192, 90,000 steps at 224 px,
Adafactor; 512 TPUv5 chips, about 2 days with the phase of high resolution. What is ours
stands in `tipsv2_b14.py`.
"""

import dataclasses

from trainer.config import ComputeConfig, Remat, TrainConfig, tips_model
from trainer.configs import tipsv2_b14


def get_config() -> TrainConfig:
    """TIPSv2 g/14, 90,000 steps at 224 px."""
    return dataclasses.replace(
        tipsv2_b14.get_config(),
        model=tips_model("g/14", position_grid=(32, 32)),
        compute=ComputeConfig(
            dtype="bfloat16", remat=Remat.FULL, scan_layers=True, n_fsdp=8
        ),
    )
