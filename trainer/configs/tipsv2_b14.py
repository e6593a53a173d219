"""TIPSv2 B/14: iBOT++, head-only EMA, captions of PaliGemma and Gemini in turn.

Paper: arXiv:2604.12012. Theirs: the losses and their weights, the teacher, Adafactor,
batch 8,192 and 90,000 steps (those of g/14; the released B/14 was distilled), captions
in turn, the released position grid of 32 x 32. Ours, as the paper does not give them:
learning rate, warm-up, weight decay, temperatures, decays, crop ranges, the equal odds
of the captions.

    python -m trainer.train --config trainer/configs/tipsv2_b14.py \\
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


def get_config() -> TrainConfig:
    """TIPSv2 B/14, 90,000 steps at 224 px."""
    return TrainConfig(
        model=tips_model("B/14", position_grid=(32, 32)),
        data=DataConfig(
            tokenizer="tokenizer.model",
            batch_size=8192,
            granularity_weights={"coco": 0.5, "gemini": 0.5},
            # Of an object store: 2.6 MB a request with photos of 40 kB, and no two rows
            # of a batch from one block.
            n_records_per_block=64,
            n_blocks_per_window=1,
            n_streams=0,
        ),
        self_supervision=SelfSupervisionConfig(
            patch_loss=PatchLoss.IBOT_PLUS_PLUS,
            ema=Ema.HEAD,
            n_teacher_warmup_steps=27_000,  # 30 % of the steps, as in DINOv2
        ),
        optimizer=OptimizerConfig(
            optimizer=Optimizer.ADAFACTOR,
            learning_rate=1e-3,
            n_warmup_steps=5_000,
            clip_by_module=True,  # as in DINOv2
            n_frozen_head_steps=1_250,  # DINOv2's first epoch
        ),
        n_steps=90_000,
        compute=ComputeConfig(dtype="bfloat16", remat=Remat.DOTS),
        run=RunConfig(
            n_steps_per_checkpoint=5_000,
            n_workers=8,  # 1,024 on 128 hosts, which divide the batch: docs/training.md
        ),
    )
