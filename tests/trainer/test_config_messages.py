"""A setting that cannot be meant is refused when it is made: name, value and bound."""

import pytest

from trainer import config_files
from trainer.config import (
    AddedTerm,
    ComputeConfig,
    ContrastivePair,
    CropConfig,
    DataConfig,
    HeadConfig,
    OptimizerConfig,
    RunConfig,
    SelfSupervisionConfig,
    TextConfig,
    VisionConfig,
)
from trainer.evaluation_config import EvaluationConfig

SIZES = {"width": 8, "n_layers": 1, "n_heads": 1, "mlp_dim": 8}
PAIR = "{'token': 1, 'text': 'alt_text', 'weight': 1.0}"
SIGMOID_PAIR = PAIR.replace("}", ", 'loss': 'sigmoid'}")
SILENT = ("self_supervision.distillation_weight=0", "self_supervision.patch_weight=0")
NEEDED = {
    VisionConfig: SIZES,
    TextConfig: SIZES,
    DataConfig: {"tokenizer": "x", "batch_size": 2, "granularity_weights": {}},
    OptimizerConfig: {"learning_rate": 1.0, "n_warmup_steps": 0},
}


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (VisionConfig, {"mlp_dim": 0}, "mlp_dim=0: expected more than 0"),
        (VisionConfig, {"drop_path": 1}, "drop_path=1: expected 0 <= share < 1"),
        (VisionConfig, {"n_heads": 0}, "n_heads=0: expected more than 0"),
        (
            VisionConfig,
            {"cls_init_stddev": -1},
            "cls_init_stddev=-1: expected 0 or more",
        ),
        (
            VisionConfig,
            {"n_registers": -1},
            "n_registers=-1: expected 0 or more",
        ),
        (VisionConfig, {"patch_size_px": 0}, "patch_size_px=0: expected more than 0"),
        (
            VisionConfig,
            {"position_grid": (0, 2)},
            "position_grid=(0, 2): expected two positive numbers",
        ),
        (TextConfig, {"max_tokens": 0}, "max_tokens=0: expected more than 0"),
        (TextConfig, {"vocabulary_size": 0}, "vocabulary_size=0: expected more than 0"),
        (HeadConfig, {"hidden_dim": 0}, "hidden_dim=0: expected more than 0"),
        (HeadConfig, {"bottleneck_dim": 0}, "bottleneck_dim=0: expected more than 0"),
        (
            RunConfig,
            {"max_skipped_share": 2},
            "max_skipped_share=2: expected 0 <= share <= 1",
        ),
        (
            SelfSupervisionConfig,
            {"distillation_weight": -1},
            "distillation_weight=-1: expected 0 or more",
        ),
        (
            SelfSupervisionConfig,
            {"patch_weight": -1},
            "patch_weight=-1: expected 0 or more",
        ),
        (
            SelfSupervisionConfig,
            {"visible_weight": -1},
            "visible_weight=-1: expected 0 or more",
        ),
        (SelfSupervisionConfig, {"mask_ratio": 2}, "mask_ratio=2: expected 0 <= value"),
        (SelfSupervisionConfig, {"ema_decay": 2}, "ema_decay=2: expected 0 <= value"),
        (
            SelfSupervisionConfig,
            {"final_ema_decay": 2},
            "final_ema_decay=2: expected 0 <= value <= 1",
        ),
        (
            SelfSupervisionConfig,
            {"center_momentum": 2},
            "center_momentum=2: expected 0 <= value <= 1",
        ),
        (
            SelfSupervisionConfig,
            {"student_temperature": 0},
            "student_temperature=0: expected more than 0",
        ),
        (
            SelfSupervisionConfig,
            {"initial_teacher_temperature": 0},
            "initial_teacher_temperature=0: expected more than 0",
        ),
        (
            SelfSupervisionConfig,
            {"teacher_temperature": 0},
            "teacher_temperature=0: expected more than 0",
        ),
        (
            SelfSupervisionConfig,
            {"n_prototypes_per_chunk": 0},
            "n_prototypes_per_chunk=0: expected more than 0",
        ),
        (
            SelfSupervisionConfig,
            {"n_teacher_warmup_steps": -1},
            "n_teacher_warmup_steps=-1: expected 0 or more",
        ),
        (
            SelfSupervisionConfig,
            {"patch_loss": "ibot", "mask_ratio": 0.0},
            "mask_ratio=0.0: expected more than 0 with patch_loss=ibot",
        ),
        (
            SelfSupervisionConfig,
            {"patch_loss": "ibot", "patch_reduction": "separate"},
            "patch_reduction=separate: expected mean with patch_loss=ibot",
        ),
        (
            SelfSupervisionConfig,
            {"visible_weight": 0.5},
            "visible_weight=0.5: expected 1 without patch_reduction=separate",
        ),
        (
            SelfSupervisionConfig,
            {"is_global_crop_distilled": True, "distillation_weight": 0.0},
            "is_global_crop_distilled=True: expected False with distillation_weight=0",
        ),
        (
            ContrastivePair,
            {"token": 1, "text": "alt_text", "weight": 0.0},
            "weight=0.0: expected more than 0",
        ),
        (
            ContrastivePair,
            {"token": 3, "text": "alt_text", "weight": 1.0},
            "token=3: expected 1 or 2",
        ),
        (
            AddedTerm,
            {"term": "a:B", "weight": 0.0},
            "weight=0.0: expected more than 0",
        ),
        (
            ComputeConfig,
            {"n_rows_per_chunk": 0},
            "n_rows_per_chunk=0: expected more than 0",
        ),
        (ComputeConfig, {"dtype": "int8"}, "dtype=int8: expected float32 or bfloat16"),
        (
            CropConfig,
            {"flip_probability": 2},
            "flip_probability=2: expected a probability",
        ),
        (
            CropConfig,
            {"min_aspect": 2, "max_aspect": 1},
            "min_aspect=2, max_aspect=1: expected 0 < min_aspect <= max_aspect",
        ),
        (
            DataConfig,
            {"granularity_weights": {"a": 0}},
            "granularity_weights={'a': 0}: expected positive weights",
        ),
        (DataConfig, {"mixture": {"a": 0}}, "mixture={'a': 0}: expected positive"),
        (DataConfig, {"n_local_crops": -1}, "n_local_crops=-1: expected 0 or more"),
        (
            DataConfig,
            {"n_records_per_block": 0},
            "n_records_per_block=0: expected more than 0",
        ),
        (
            DataConfig,
            {"n_blocks_per_window": 0},
            "n_blocks_per_window=0: expected more than 0",
        ),
        (DataConfig, {"n_streams": -1}, "n_streams=-1: expected 0 or a divisor of"),
        (DataConfig, {"n_streams": 3}, "n_streams=3: expected 0 or a divisor of"),
        (OptimizerConfig, {"weight_decay": -1}, "weight_decay=-1: expected 0 or more"),
        (
            OptimizerConfig,
            {"n_frozen_head_steps": -1},
            "n_frozen_head_steps=-1: expected 0 or more",
        ),
        (OptimizerConfig, {"beta1": 1}, "beta1=1: expected 0 <= value < 1"),
        (OptimizerConfig, {"beta2": 1}, "beta2=1: expected 0 <= value < 1"),
        (OptimizerConfig, {"beta2_cap": 0}, "beta2_cap=0: expected 0 < value <= 1"),
        (OptimizerConfig, {"min_factored": 0}, "min_factored=0: expected more than 0"),
        (
            OptimizerConfig,
            {"momentum_dtype": "int8"},
            "momentum_dtype=int8: expected float32 or bfloat16",
        ),
        (OptimizerConfig, {"layer_decay": 2}, "layer_decay=2: expected 0 < value <= 1"),
        (
            OptimizerConfig,
            {"frozen": ("text/.*", "(")},
            "frozen.1=(: expected a regular expression, missing )",
        ),
        (
            OptimizerConfig,
            {"max_gradient_norm": 0},
            "max_gradient_norm=0: expected more than 0",
        ),
        (RunConfig, {"n_threads": 0}, "n_threads=0: expected more than 0"),
        (RunConfig, {"n_steps_per_log": 0}, "n_steps_per_log=0: expected more than 0"),
        (
            RunConfig,
            {"n_steps_per_checkpoint": 0},
            "n_steps_per_checkpoint=0: expected more than 0",
        ),
        (
            RunConfig,
            {"n_checkpoints_kept": 0},
            "n_checkpoints_kept=0: expected more than 0",
        ),
        (
            RunConfig,
            {"n_steps_per_checkpoint": 5, "n_steps_per_kept_checkpoint": 12},
            "n_steps_per_kept_checkpoint=12: expected 0 or a multiple of n_steps_per",
        ),
        (
            RunConfig,
            {"n_profiled_steps": 0},
            "n_profiled_steps=0: expected more than 0",
        ),
        (RunConfig, {"peak_flops_per_s": -1}, "peak_flops_per_s=-1: expected 0 or"),
        (EvaluationConfig, {"dpt_channels": 0}, "dpt_channels=0: expected more than 0"),
        (EvaluationConfig, {"weight_decay": -1}, "weight_decay=-1: expected 0 or more"),
        (EvaluationConfig, {"min_depth_m": 0}, "min_depth_m=0: expected more than 0"),
        (
            EvaluationConfig,
            {"max_depth_m": 0.0},
            "max_depth_m=0.0: expected more than min_depth_m=0.001",
        ),
    ],
)
def test_a_value_out_of_bounds_is_named_with_them(kind, fields, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (read below)
        kind(**NEEDED.get(kind, {}) | fields)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.initial_temperature=0"],
            "initial_temperature=0.0: expected more than 0",
        ),
        (
            ["data.n_local_crops=0"],
            "data.n_local_crops=0: expected at least 1, or self_supervision.distil",
        ),
        (
            ["contrastive=[]", *SILENT],
            "contrastive=(): expected at least one pair, or a weight of self_superv",
        ),
        (
            [f"contrastive=[{PAIR}, {PAIR}]"],
            "contrastive=['alt_text with token 1', 'alt_text with token 1']: expected"
            " pairs that differ",
        ),
        (
            ["contrastive=[]", "model.contrastive_loss=sigmoid"],
            "model.contrastive_loss=sigmoid: expected a pair of contrastive with this",
        ),
        (
            [f"contrastive=[{SIGMOID_PAIR}]"],
            "contrastive: loss=sigmoid: expected model.contrastive_loss=sigmoid, which",
        ),
        (
            ["self_supervision.ema=frozen", "teacher_from=x", *SILENT],
            "self_supervision.ema=frozen: expected a weight of self_supervision of",
        ),
        (
            ["compute.n_microbatches=3"],
            "compute.n_microbatches=3: expected a divisor of data.batch_size=64",
        ),
        (
            ["compute.n_microbatches=2"],
            "compute.n_microbatches=2: expected 1 with self_supervision.anti_collapse",
        ),
    ],
)
def test_parts_that_do_not_fit_each_other_are_named(overrides, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (read below)
        config_files.load("trainer/configs/demo.py", overrides)
    assert message in str(error.value)
