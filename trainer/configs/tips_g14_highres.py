"""TIPS g/14, the short phase of high resolution after `tips_g14.py`.

Paper: arXiv:2410.16512, section 4. Theirs: 0.1 epochs (about 2,900 steps) of batch
4,096, global crops of 448 px, local crops of 140 px; captions of the captioner at
448 px. Ours: the learning rate.

    python -m trainer.train --config trainer/configs/tips_g14_highres.py --data ... \\
        --workdir DIR --set init_from=WORKDIR_OF_TIPS_G14
"""

import dataclasses

from trainer.config import CropConfig, TrainConfig
from trainer.configs import tips_g14


def get_config() -> TrainConfig:
    """TIPS g/14, 2,900 steps at 448 px."""
    low = tips_g14.get_config()
    return dataclasses.replace(
        low,
        data=dataclasses.replace(
            low.data,
            batch_size=4096,
            granularity_weights={"coco_448": 1.0},
            global_crop=CropConfig(size_px=448),
            local_crop=dataclasses.replace(low.data.local_crop, size_px=140),
        ),
        optimizer=dataclasses.replace(
            low.optimizer,
            learning_rate=1e-4,
            n_warmup_steps=300,
            n_frozen_head_steps=0,  # its head is trained
        ),
        self_supervision=dataclasses.replace(
            low.self_supervision, n_teacher_warmup_steps=0
        ),
        n_steps=2_900,
    )
