"""A training run as frozen dataclasses that check themselves.

A wrong value raises a `ValueError` that names the field, the value and what was
expected. `trainer.config_files` reads recipes from files.
"""

import dataclasses
import enum
from collections.abc import Mapping

from recipes.settings import Settings
from recipes.validation import require, require_positive
from trainer.evaluation_config import EvaluationConfig, PromptSet, Weights
from trainer.model_config import (
    PAD_ID,
    TIPS_SIZES,
    AttentionKind,
    ComputeConfig,
    ContrastiveLoss,
    FeedForward,
    HeadConfig,
    ModelConfig,
    Remat,
    TextConfig,
    TransformerConfig,
    VisionConfig,
    tips_model,
)
from trainer.objective_config import (
    TWO_TOKENS,
    AddedTerm,
    AntiCollapse,
    ContrastivePair,
    Ema,
    Masking,
    PatchLoss,
    PatchReduction,
    SelfSupervisionConfig,
    Text,
    check_objective,
)
from trainer.optimizer_config import Optimizer, OptimizerConfig, Schedule

__all__ = [
    "PAD_ID",
    "TIPS_SIZES",
    "TWO_TOKENS",
    "AddedTerm",
    "AntiCollapse",
    "AttentionKind",
    "ComputeConfig",
    "ContrastiveLoss",
    "ContrastivePair",
    "CropConfig",
    "DataConfig",
    "Ema",
    "EvaluationConfig",
    "FeedForward",
    "HeadConfig",
    "InitParts",
    "Masking",
    "ModelConfig",
    "Optimizer",
    "OptimizerConfig",
    "PatchLoss",
    "PatchReduction",
    "PromptSet",
    "Remat",
    "RunConfig",
    "Schedule",
    "SelfSupervisionConfig",
    "Text",
    "TextConfig",
    "TrainConfig",
    "TransformerConfig",
    "VisionConfig",
    "Weights",
    "tips_model",
]


class InitParts(enum.StrEnum):
    """The parts that a new run takes from `init_from`."""

    ALL = "all"
    TOWERS = "towers"  # both encoders and the temperatures; head and mask token do not
    VISION = "vision"  # the image encoder; the rest starts from scratch
    TEXT = "text"  # the text encoder; the rest starts from scratch


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropConfig(Settings):
    """A random box of the image, resized to a square, and possibly flipped.

    The papers do not give the ranges. These are DINO's for the global crop.
    """

    size_px: int = 224  # side of the square
    min_area: float = 0.4  # share of the image
    max_area: float = 1.0  # share of the image
    min_aspect: float = 3 / 4  # width / height
    max_aspect: float = 4 / 3  # width / height
    flip_probability: float = 0.5  # of a mirror image, left to right

    def __post_init__(self):
        require_positive(self, "size_px")
        require(
            0 < self.min_area <= self.max_area <= 1,
            f"min_area={self.min_area}, max_area={self.max_area}",
            "0 < min_area <= max_area <= 1",
        )
        require(
            0 < self.min_aspect <= self.max_aspect,
            f"min_aspect={self.min_aspect}, max_aspect={self.max_aspect}",
            "0 < min_aspect <= max_aspect",
        )
        require(
            0 <= self.flip_probability <= 1,
            f"flip_probability={self.flip_probability}",
            "a probability",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Batches, crops and captions."""

    tokenizer: str  # sentencepiece model, made by `python -m trainer.tokenizer`
    batch_size: int  # images per step, of all devices and hosts together
    # Granularity to its share of the synthetic captions; `alt_text` may be one. If a
    # sample lacks a granularity, the others take its share; with {} the alt text is
    # the synthetic caption too.
    granularity_weights: Mapping[str, float]
    global_crop: CropConfig = CropConfig()
    # Never flipped: the papers flip only the global crop.
    local_crop: CropConfig = CropConfig(
        size_px=98, min_area=0.05, max_area=0.4, flip_probability=0.0
    )
    n_local_crops: int = 6  # per image; 6 is from TIPS
    # Name of a set, as `--data` gives it, to its share of the samples shown. With {},
    # the samples of all sets are shown equally often.
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)
    # With 1, an epoch is shuffled over all samples. With more, one request to an object
    # store reads that many adjacent samples, a block; the blocks are shuffled, then the
    # samples of `n_blocks_per_window` blocks at a time.
    n_records_per_block: int = 1
    n_blocks_per_window: int = 16  # see above; no effect with single records
    # Blocks are dealt to so many streams, each with windows of its own; row r of every
    # batch is of stream r mod `n_streams`. If hosts x loader processes divide it, each
    # block is read by one process of one host; if not, by several. All together hold
    # about n_streams x n_blocks_per_window blocks. 0: one stream for each row of a
    # batch. No effect with single records.
    n_streams: int = 1

    def __post_init__(self):
        require(self.batch_size > 1, f"batch_size={self.batch_size}", "at least 2")
        n = self.n_local_crops
        require(n >= 0, f"n_local_crops={n}", "0 or more")
        require_positive(self, "n_records_per_block")
        require_positive(self, "n_blocks_per_window")
        n = self.n_streams
        require(
            n >= 0 and self.batch_size % (n or 1) == 0,
            f"n_streams={n}",
            f"0 or a divisor of batch_size={self.batch_size}",
        )
        require(
            all(weight > 0 for weight in self.granularity_weights.values()),
            f"granularity_weights={dict(self.granularity_weights)}",
            "positive weights",
        )
        require(
            all(weight > 0 for weight in self.mixture.values()),
            f"mixture={dict(self.mixture)}",
            "positive weights",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """How a run is carried out. Nothing here changes a learned number."""

    n_workers: int = 0  # loader processes; 0: threads of this one
    n_threads: int = 2  # per loader process; each makes a whole batch
    n_steps_per_log: int = 50  # between lines of metrics.jsonl
    n_steps_per_checkpoint: int = 1000  # and per evaluation
    n_checkpoints_kept: int = 2  # the latest; step 0 is always kept
    n_steps_per_kept_checkpoint: int = (
        0  # keeps those of its multiples as well; 0: none
    )
    # Where the numbers go beside metrics.jsonl: tensorboard, wandb, MODULE:CLASS.
    trackers: tuple[str, ...] = ("tensorboard",)
    n_profiled_steps: int = 5  # in a trace, see `trainer.loop.profiler`
    # Of the records drawn; if more are damaged, the run stops.
    max_skipped_share: float = 0.2
    # Peak of one device, for the MFU; 0: the entry of `trainer.loop.flops.PEAKS`.
    peak_flops_per_s: float = 0.0
    # Task to its data (see `trainer.evaluate`), run at every checkpoint.
    evaluations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # Settings of these evaluations.
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)

    def __post_init__(self):
        for name in ("n_workers", "peak_flops_per_s"):
            value = getattr(self, name)
            require(value >= 0, f"{name}={value}", "0 or more")
        share = self.max_skipped_share
        require(0 <= share <= 1, f"max_skipped_share={share}", "0 <= share <= 1")
        for name in (
            "n_threads",
            "n_steps_per_log",
            "n_steps_per_checkpoint",
            "n_checkpoints_kept",
            "n_profiled_steps",
        ):
            require_positive(self, name)
        n, n_saved = self.n_steps_per_kept_checkpoint, self.n_steps_per_checkpoint
        require(
            n >= 0 and n % n_saved == 0,
            f"n_steps_per_kept_checkpoint={n}",
            f"0 or a multiple of n_steps_per_checkpoint={n_saved}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """A whole training run; `get_config()` of a recipe returns one.

    Fields are overridden on the command line as `--set a.b=value`, and in Python with
    `dataclasses.replace`, which checks the new value too:

    >>> from trainer.configs import tipsv2_b14
    >>> config = tipsv2_b14.get_config()
    >>> dataclasses.replace(config, n_steps=0)
    Traceback (most recent call last):
    ...
    ValueError: n_steps=0: expected more than 0
    """

    model: ModelConfig  # both encoders and the head
    data: DataConfig  # batches, crops and captions
    optimizer: OptimizerConfig
    n_steps: int  # optimizer updates; n_samples_seen = n_steps x data.batch_size
    # Which CLS token is compared with which text; () is self-supervision alone.
    contrastive: tuple[ContrastivePair, ...] = TWO_TOKENS
    self_supervision: SelfSupervisionConfig = dataclasses.field(
        default_factory=SelfSupervisionConfig
    )
    terms: tuple[AddedTerm, ...] = ()  # further ones, see `trainer.step.terms`
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    # Workdir or export whose parameters a new run starts from, with positions resized
    # to the model's grid; "" starts from scratch. Later the run resumes from its own.
    init_from: str = ""
    init_parts: InitParts = InitParts.ALL
    # Workdir of the teacher, with self_supervision.ema=frozen.
    teacher_from: str = ""
    rng_seed: int = 0  # of the first parameters, the order and the crops
    run: RunConfig = RunConfig()

    def __post_init__(self):
        require_positive(self, "n_steps")
        require(
            0 <= self.rng_seed < 2**32, f"rng_seed={self.rng_seed}", "0 to 2**32 - 1"
        )
        require(
            self.optimizer.n_warmup_steps < self.n_steps,
            f"optimizer.n_warmup_steps={self.optimizer.n_warmup_steps}",
            f"less than n_steps={self.n_steps}",
        )
        patch = self.model.vision.patch_size_px
        for name in ("global_crop", "local_crop"):
            size = getattr(self.data, name).size_px
            require(
                size % patch == 0,
                f"data.{name}.size_px={size}",
                f"a multiple of model.vision.patch_size_px={patch}",
            )
        check_objective(self)
        ssl, n_local_crops = self.self_supervision, self.data.n_local_crops
        require(
            ssl.distillation_weight == 0 or n_local_crops > 0,
            f"data.n_local_crops={n_local_crops}",
            "at least 1, or self_supervision.distillation_weight=0",
        )
        require(
            (ssl.ema is Ema.FROZEN) == bool(self.teacher_from),
            f"teacher_from={self.teacher_from!r}",
            "a workdir with self_supervision.ema=frozen, and nothing without",
        )
        if self.run.evaluation.weights is Weights.TEACHER:
            ssl.require_averaged_encoder("run.evaluation.weights=teacher")
        n_parts = self.compute.n_microbatches
        require(
            self.data.batch_size % n_parts == 0,
            f"compute.n_microbatches={n_parts}",
            f"a divisor of data.batch_size={self.data.batch_size}",
        )
        require(
            n_parts == 1 or ssl.anti_collapse is AntiCollapse.CENTERING,
            f"compute.n_microbatches={n_parts}",
            "1 with self_supervision.anti_collapse=sinkhorn, which needs a whole batch",
        )

    def is_checkpoint_due(self, step: int) -> bool:
        """Whether the run saves and evaluates after this step even if nobody asks."""
        is_regular = step % self.run.n_steps_per_checkpoint == 0
        return step > 0 and (is_regular or step == self.n_steps)
