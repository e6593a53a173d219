"""TIPS B/14: contrastive, self-distillation and iBOT, with a full EMA teacher.

Paper: arXiv:2410.16512, section 4. Theirs: the model, batch 16,384, 70 epochs of 116
million images (about 496,000 steps), crops of 224 and 98 px, mask ratio, weights and
32,768 prototypes; 256 TPUv3 chips for 4 days. Ours, as the paper does not give them:
optimizer, learning rate, warm-up, weight decay, temperatures, decays, crop ranges.

    python -m trainer.train --config trainer/configs/tips_b14.py \\
        --data RUN/tfrecords --workdir DIR --set data.tokenizer=RUN/tokenizer.model
"""

from trainer.config import (
    ComputeConfig,
    DataConfig,
    Ema,
    Optimizer,
    OptimizerConfig,
    PatchLoss,
    Remat,
    RunConfig,
    SelfSupervisionConfig,
    TrainConfig,
    tips_model,
)

N_STEPS = 496_000


def get_config() -> TrainConfig:
    """TIPS B/14, 496,000 steps at 224 px."""
    return TrainConfig(
        model=tips_model("B/14"),
        data=DataConfig(
            tokenizer="tokenizer.model",
            batch_size=16_384,
            granularity_weights={"coco": 1.0},
            # Of an object store: 2.6 MB a request with photos of 40 kB, and no two rows
            # of a batch from one block.
            n_records_per_block=64,
            n_blocks_per_window=1,
            n_streams=0,
        ),
        self_supervision=SelfSupervisionConfig(
            patch_loss=PatchLoss.IBOT,
            ema=Ema.FULL,
            n_teacher_warmup_steps=37_500,  # DINOv2's 30 epochs of 1,250 steps
        ),
        optimizer=OptimizerConfig(
            optimizer=Optimizer.ADAFACTOR,  # TIPSv2's; TIPS does not say
            learning_rate=1e-3,
            n_warmup_steps=10_000,
            clip_by_module=True,  # as in DINOv2
            n_frozen_head_steps=1_250,  # DINOv2's first epoch
        ),
        n_steps=N_STEPS,
        compute=ComputeConfig(dtype="bfloat16", remat=Remat.DOTS),
        run=RunConfig(
            n_steps_per_checkpoint=5_000,
            n_workers=8,  # 1,024 on 128 hosts, which divide the batch: docs/training.md
        ),
    )
