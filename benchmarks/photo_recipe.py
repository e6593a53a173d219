"""A small TIPSv2 for photos on two CPU cores; `benchmarks.photo_training` trains it.

Only the structure is from the papers. Images of 112 px in 8 x 8 patches; alt texts and
synthetic captions are human captions of the same photo.
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
from trainer.evaluation_config import EvaluationConfig


def get_config() -> TrainConfig:
    sizes: dict[str, Any] = {"width": 96, "n_heads": 3, "mlp_dim": 384}
    return TrainConfig(
        model=ModelConfig(
            vision=VisionConfig(**sizes, n_layers=4, position_grid=(8, 8)),
            text=TextConfig(**sizes, n_layers=2, vocabulary_size=2000, max_tokens=32),
            head=HeadConfig(n_prototypes=128, hidden_dim=192, bottleneck_dim=64),
        ),
        data=DataConfig(
            tokenizer="tokenizer.model",
            batch_size=64,
            granularity_weights={"human": 1.0},
            # A caption describes the whole photo, so crops keep most of it.
            global_crop=CropConfig(size_px=112, min_area=0.5),
            local_crop=CropConfig(size_px=56, min_area=0.1, max_area=0.4),
            n_local_crops=2,
        ),
        # Centers would take most of the few steps to settle.
        self_supervision=SelfSupervisionConfig(anti_collapse=AntiCollapse.SINKHORN),
        optimizer=OptimizerConfig(learning_rate=1e-3, n_warmup_steps=50),
        n_steps=1000,
        run=RunConfig(
            n_steps_per_log=20,
            n_steps_per_checkpoint=1000,
            # For the linear probe of masks: 81 classes take long on two cores.
            evaluation=EvaluationConfig(n_steps=300),
        ),
    )
