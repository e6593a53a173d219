"""The demo: a small TIPSv2 on drawn scenes of 128 px, on two CPU cores.

Not from the papers, except for its structure. `make demo` trains the vocabulary on the
captions of the shards and then this model:

    python -m trainer.tokenizer --data RUN/tfrecords --vocabulary-size 200 \\
        --output RUN/tokenizer.model
    python -m trainer.train --config trainer/configs/demo.py --data RUN/tfrecords \\
        --workdir RUN/model --set data.tokenizer=RUN/tokenizer.model
"""

from typing import Any

from trainer.config import (
    AntiCollapse,
    CropConfig,
    DataConfig,
    HeadConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SelfSupervisionConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
)


def get_config() -> TrainConfig:
    """The small model and the 120 steps of `make demo`."""
    sizes: dict[str, Any] = {"width": 96, "n_heads": 3, "mlp_dim": 384}
    return TrainConfig(
        model=ModelConfig(
            vision=VisionConfig(**sizes, n_layers=4, position_grid=(8, 8)),
            text=TextConfig(**sizes, n_layers=2, vocabulary_size=200, max_tokens=48),
            head=HeadConfig(n_prototypes=128, hidden_dim=192, bottleneck_dim=64),
        ),
        data=DataConfig(
            tokenizer="tokenizer.model",
            batch_size=64,
            granularity_weights={"short": 0.2, "medium": 0.4, "detailed": 0.4},
            # No flips: these captions say what is left and what is right.
            global_crop=CropConfig(size_px=112, min_area=0.6, flip_probability=0.0),
            local_crop=CropConfig(
                size_px=56, min_area=0.1, max_area=0.4, flip_probability=0.0
            ),
            n_local_crops=2,
        ),
        # TIPSv2's terms, which are the defaults. Centers would take most of the few
        # steps to settle, and the terms would rise until they have.
        self_supervision=SelfSupervisionConfig(anti_collapse=AntiCollapse.SINKHORN),
        optimizer=OptimizerConfig(learning_rate=1e-3, n_warmup_steps=20),
        n_steps=120,
        run=RunConfig(n_steps_per_log=20, n_steps_per_checkpoint=60),
    )
