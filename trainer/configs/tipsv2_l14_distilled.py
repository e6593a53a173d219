"""TIPSv2 L/14 as a student of TIPSv2 g/14, which stays as it is.

Paper: arXiv:2604.12012, section on distillation. Theirs: a frozen g/14 teaches, nothing
is masked, the loss takes all patches, the student's image encoder starts at random, and
the contrastive terms stay. Unknown, hence ours: the form of the loss (cross-entropy
with the prototypes of the teacher's own head), CLS 1 of the global crop beside those of
the local ones, the text encoder (trained from scratch; `init_parts="text"` starts it
from `init_from`, `optimizer.is_text_frozen` keeps it there: the paper found that either
matters little), weights, steps, batch, learning rate and crops (those of `tipsv2_b14`).
The other sizes: `model` and `n_steps` below. Hardware and hours are not known.

    python -m trainer.train --config trainer/configs/tipsv2_l14_distilled.py \\
        --data RUN/tfrecords --workdir DIR --set data.tokenizer=RUN/tokenizer.model \\
        --set teacher_from=WORKDIR_OF_TIPSV2_G14
"""

import dataclasses

from trainer.config import Ema, TrainConfig, tips_model
from trainer.configs import tipsv2_b14


def get_config() -> TrainConfig:
    """TIPSv2 L/14, taught by a frozen TIPSv2 g/14."""
    alone = tipsv2_b14.get_config()
    return dataclasses.replace(
        alone,
        model=tips_model("L/14", position_grid=(32, 32)),
        self_supervision=dataclasses.replace(
            alone.self_supervision,
            ema=Ema.FROZEN,
            mask_ratio=0.0,
            is_global_crop_distilled=True,
            n_teacher_warmup_steps=0,  # the teacher is trained
        ),
        optimizer=dataclasses.replace(alone.optimizer, n_frozen_head_steps=0),
        teacher_from="teacher",  # a workdir, from the command line
    )
