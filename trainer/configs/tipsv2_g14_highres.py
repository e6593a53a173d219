"""TIPSv2 g/14, the phase of high resolution after `tipsv2_g14.py`.

Paper: arXiv:2604.12012. Theirs: 9,000 steps of batch 4,096. The size is ambiguous (336
or 448 px in our sources); 448 is that of the released position grid. Ours: the size of
local crops (TIPS's 140 px) and the learning rate.

    python -m trainer.train --config trainer/configs/tipsv2_g14_highres.py --data ... \\
        --workdir DIR --set init_from=WORKDIR_OF_TIPSV2_G14
"""

import dataclasses

from trainer.config import CropConfig, TrainConfig
from trainer.configs import tipsv2_g14


def get_config() -> TrainConfig:
    """TIPSv2 g/14, 9,000 steps at 448 px."""
    low = tipsv2_g14.get_config()
    return dataclasses.replace(
        low,
        data=dataclasses.replace(
            low.data,
            batch_size=4096,
            global_crop=CropConfig(size_px=448),
            local_crop=dataclasses.replace(low.data.local_crop, size_px=140),
        ),
        optimizer=dataclasses.replace(
            low.optimizer,
            learning_rate=1e-4,
            n_warmup_steps=500,
            n_frozen_head_steps=0,  # its head is trained
        ),
        self_supervision=dataclasses.replace(
            low.self_supervision, n_teacher_warmup_steps=0
        ),
        n_steps=9_000,
    )
