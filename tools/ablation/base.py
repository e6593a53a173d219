"""The base arm of the ablation: a small TIPSv2 on hard scenes of 64 px.

Only its structure is from the papers. All other arms change one value of it, or of
another arm; see `tools.ablation.arms`.
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
    """A model of 64 px images, for a training of minutes on one core."""
    sizes: dict[str, Any] = {"width": 64, "n_heads": 2, "mlp_dim": 256}
    return TrainConfig(
        model=ModelConfig(
            vision=VisionConfig(
                **sizes, n_layers=3, position_grid=(8, 8), patch_size_px=8
            ),
            text=TextConfig(**sizes, n_layers=2, vocabulary_size=160, max_tokens=24),
            head=HeadConfig(n_prototypes=128, hidden_dim=128, bottleneck_dim=48),
        ),
        data=DataConfig(
            tokenizer="tokenizer.model",
            batch_size=32,
            granularity_weights={"short": 0.2, "medium": 0.4, "detailed": 0.4},
            global_crop=CropConfig(size_px=64, min_area=0.7),
            local_crop=CropConfig(
                size_px=32, min_area=0.1, max_area=0.4, flip_probability=0.0
            ),
            n_local_crops=1,
        ),
        # For few steps: sharp targets from the first step on, and no centers, which
        # would take most of the steps to settle.
        self_supervision=SelfSupervisionConfig(
            anti_collapse=AntiCollapse.SINKHORN,
            teacher_temperature=0.04,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, n_warmup_steps=30),
        n_steps=450,
        run=RunConfig(
            n_threads=1,
            n_steps_per_log=25,
            n_steps_per_checkpoint=150,
            evaluation=EvaluationConfig(n_steps=300),
        ),
    )
