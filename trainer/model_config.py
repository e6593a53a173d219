"""The model of a run, and how it is computed, as dataclasses that check themselves.

Recipes import these names from `trainer.config`, which has the other settings.
"""

import dataclasses
import enum
import typing

from recipes.settings import Settings
from recipes.validation import require, require_positive

PAD_ID = 0  # token id that pads rows of text


class FeedForward(enum.StrEnum):
    """The second half of a transformer block."""

    GELU = "gelu"  # tanh approximation
    RELU = "relu"
    SWIGLU = "swiglu"  # hidden width two thirds of `mlp_dim`


class Remat(enum.StrEnum):
    """Values that the backward pass computes again instead of keeping them."""

    NONE = "none"
    DOTS = "dots"  # all but the products with parameters
    DOTS_AND_ATTENTION = "dots_and_attention"  # all but these and what attention mixes
    FULL = "full"  # all but the inputs of the blocks


class AttentionKind(enum.StrEnum):
    """How attention is computed."""

    AUTO = "auto"  # by a kernel where the devices have one and `dtype` is bfloat16
    PLAIN = "plain"  # with its weights in memory


class ContrastiveLoss(enum.StrEnum):
    """The loss between images and texts."""

    INFO_NCE = "info_nce"
    SIGMOID = "sigmoid"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(Settings):
    """Sizes of one tower; both towers have these."""

    width: int  # of a token
    n_layers: int  # blocks of attention and feed-forward
    n_heads: int  # of attention; each has width / n_heads channels
    mlp_dim: int  # hidden width of the feed-forward
    feed_forward: FeedForward
    # Share of the residual branches of the last block that training drops; less before.
    drop_path: float = 0.0

    def __post_init__(self):
        for name in ("width", "n_layers", "n_heads", "mlp_dim"):
            require_positive(self, name)
        rate = self.drop_path
        require(0 <= rate < 1, f"drop_path={rate}", "0 <= share < 1")
        require(
            self.width % (2 * self.n_heads) == 0,
            f"width={self.width}",
            f"a multiple of 2 x n_heads = {2 * self.n_heads}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(TransformerConfig):
    """The image encoder: a vision transformer with two CLS tokens."""

    feed_forward: FeedForward = FeedForward.GELU
    position_grid: tuple[int, int] = (16, 16)  # learned; resized to the input's
    patch_size_px: int = 14  # side of a patch; crops are multiples of it
    # Of the normal start of both CLS tokens. With 0, the authors', they start equal.
    cls_init_stddev: float = 0.0
    # Further learned tokens, whose output nothing reads (arXiv:2309.16588).
    n_registers: int = 0

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "patch_size_px")
        std = self.cls_init_stddev
        require(std >= 0, f"cls_init_stddev={std}", "0 or more")
        n = self.n_registers
        require(n >= 0, f"n_registers={n}", "0 or more")
        require(
            min(self.position_grid) > 0,
            f"position_grid={self.position_grid}",
            "two positive numbers",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig):
    """The text encoder, whose valid tokens are averaged."""

    feed_forward: FeedForward = FeedForward.RELU
    vocabulary_size: int = 32_000  # pieces of the tokenizer
    max_tokens: int = 64  # a longer text is cut

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "vocabulary_size")
        require_positive(self, "max_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig(Settings):
    """The head of self-distillation: an MLP, a narrow unit vector, prototypes.

    The sizes are DINO's. The papers give only the number of prototypes of the patch
    loss.
    """

    n_prototypes: int = 32_768  # outputs
    hidden_dim: int = 2048  # of the MLP
    n_layers: int = 3  # of the MLP, including the bottleneck
    bottleneck_dim: int = 256  # width of the unit vector
    # Between CLS token and patches, as the figure of TIPSv2 shows, and as the 42 % of
    # parameters that its teacher saves imply.
    is_shared: bool = True

    def __post_init__(self):
        for name in ("n_prototypes", "hidden_dim", "n_layers", "bottleneck_dim"):
            require_positive(self, name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Both encoders, the prototype head, and the start of the contrastive loss."""

    vision: VisionConfig  # the image encoder
    text: TextConfig  # the text encoder, of the same width
    head: HeadConfig = HeadConfig()
    # CLIP's; both temperatures are learned from there, without a bound.
    initial_temperature: float = 0.07
    # InfoNCE is the papers'; the sigmoid loss is SigLIP's (arXiv:2303.15343).
    contrastive_loss: ContrastiveLoss = ContrastiveLoss.INFO_NCE
    initial_bias: float = -10.0  # of the sigmoid loss: SigLIP's

    def __post_init__(self):
        require(
            self.vision.width == self.text.width,
            f"text.width={self.text.width}",
            f"vision.width={self.vision.width}: there is no projection between them",
        )
        require_positive(self, "initial_temperature")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig(Settings):
    """How the step is computed. Results change by no more than rounding."""

    dtype: str = "float32"  # or bfloat16; parameters, softmax and losses are float32
    remat: Remat = Remat.NONE
    attention: AttentionKind = AttentionKind.AUTO
    scan_layers: bool = False  # one compiled block for all layers
    n_microbatches: int = 1  # the contrastive loss still sees the whole batch
    n_fsdp: int = 1  # devices that share one copy of parameters and optimizer
    n_rows_per_chunk: int = 1024  # of the contrastive logits, on each device

    def __post_init__(self):
        for name in ("n_microbatches", "n_fsdp", "n_rows_per_chunk"):
            require_positive(self, name)
        is_known = self.dtype in ("float32", "bfloat16")
        require(is_known, f"dtype={self.dtype}", "float32 or bfloat16")


# width, vision layers, heads, MLP, feed-forward, text layers
TIPS_SIZES = {
    "S/14": (384, 12, 6, 1536, FeedForward.GELU, 12),
    "B/14": (768, 12, 12, 3072, FeedForward.GELU, 12),
    "L/14": (1024, 24, 16, 4096, FeedForward.GELU, 12),
    "So400m/14": (1152, 27, 16, 4304, FeedForward.GELU, 27),
    "g/14": (1536, 40, 24, 6144, FeedForward.SWIGLU, 12),
}


def tips_model(size: str, position_grid: tuple[int, int] = (16, 16)) -> ModelConfig:
    """Returns one of the released sizes: S/14, B/14, L/14, So400m/14 or g/14.

    The position grid is (16, 16) in TIPS and (32, 32) in TIPSv2. The released code
    gives every text tower 12 layers; the released So400m weights have 27.

    >>> model = tips_model("B/14", position_grid=(32, 32))
    >>> model.vision.width, model.text.n_layers
    (768, 12)
    """
    require(size in TIPS_SIZES, f"size={size}", f"one of {', '.join(TIPS_SIZES)}")
    width, n_layers, n_heads, mlp_dim, feed_forward, n_text_layers = TIPS_SIZES[size]
    shared: dict[str, typing.Any] = {
        "width": width,
        "n_heads": n_heads,
        "mlp_dim": mlp_dim,
    }
    return ModelConfig(
        vision=VisionConfig(
            **shared,
            n_layers=n_layers,
            feed_forward=feed_forward,
            position_grid=position_grid,
        ),
        text=TextConfig(**shared, n_layers=n_text_layers),
    )
