"""Scenic's arrays to PyTorch's, and back.

PyTorch stores a linear layer as [out, in] with flat inputs and outputs, stacks queries,
keys and values, and stacks both branches of a gated MLP. Its image encoder adds a
position to CLS 1, which is written here as zeros, and has factors of the residual
branches (LayerScale), which are written as ones. Reading folds both in.
Source: google-deepmind/tips, `pytorch/image_encoder.py` and `pytorch/text_encoder.py`.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from trainer.config import FeedForward, TextConfig, TransformerConfig, VisionConfig
from trainer.exchange.exported_weights import CLS, POSITIONS, Arrays, Shapes

_EMBEDDING = "encoder/ToTokenSequence_0/embedding"
_ATTENTION = "MultiHeadDotProductAttention_0"


@dataclasses.dataclass(frozen=True)
class _Stack:
    """An array of PyTorch, and the arrays of Scenic that are stacked in it.

    A kernel is transposed so that its outputs come first; its bias gives their number.
    Everything else is flattened.
    """

    name: str
    keys: tuple[str, ...]

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        n_values = sum(math.prod(shapes[key]) for key in self.keys)
        if not self.keys[0].endswith("/kernel"):
            return (n_values,)
        n_outputs = sum(math.prod(shapes[_bias(key)]) for key in self.keys)
        return (n_outputs, n_values // n_outputs)

    def pack(self, arrays: Arrays) -> Float[np.ndarray, "..."]:
        if not self.keys[0].endswith("/kernel"):
            return np.concatenate([arrays[key].reshape(-1) for key in self.keys])
        sizes = [arrays[_bias(key)].size for key in self.keys]
        pairs = zip(self.keys, sizes, strict=True)
        return np.concatenate([arrays[key].reshape(-1, size).T for key, size in pairs])

    def unpack(self, array: Float[np.ndarray, "..."], shapes: Shapes) -> Arrays:
        is_kernel = self.keys[0].endswith("/kernel")
        keys = map(_bias, self.keys) if is_kernel else self.keys
        sizes = [math.prod(shapes[key]) for key in keys]
        parts = np.split(array, np.cumsum(sizes)[:-1])
        pairs = zip(self.keys, parts, strict=True)
        return {
            key: np.ascontiguousarray(part.T).reshape(shapes[key])
            for key, part in pairs
        }


def _bias(key: str) -> str:
    return key.removesuffix("kernel") + "bias"


@dataclasses.dataclass(frozen=True)
class _Names:
    """Where the two towers of PyTorch differ in names; {} is the number of a block."""

    block: str  # of Scenic
    torch_block: str
    norms: tuple[str, str]
    qkv: str
    out: str
    mlp: tuple[str, str]
    last_norm: tuple[str, str]  # of Scenic and of PyTorch


VISION = _Names(
    block="encoder/transformer/encoderblock_{}/",
    torch_block="blocks.{}.",
    norms=("norm1", "norm2"),
    qkv="attn.qkv.",
    out="attn.proj",
    mlp=("mlp.fc1", "mlp.fc2"),
    last_norm=("encoder/encoder_norm", "norm"),
)
TEXT = _Names(
    block="transformer/encoderblock_{}/",
    torch_block="transformer.resblocks.{}.",
    norms=("ln_1", "ln_2"),
    qkv="attn.in_proj_",
    out="attn.out_proj",
    mlp=("mlp.c_fc", "mlp.c_proj"),
    last_norm=("text_encoder_norm", "ln_final"),
)
_SWIGLU = ("mlp.w12", "mlp.w3")


def vision_to_torch(
    arrays: Arrays, mask_token: Float[np.ndarray, "d"], config: VisionConfig
) -> Arrays:
    """Returns the state of PyTorch's image encoder, as one flat mapping."""
    width = config.width
    positions = arrays[POSITIONS].reshape(1, -1, width)
    slot = np.zeros((1, 1, width), np.float32)
    ones = {name: np.ones(width, np.float32) for name in _layer_scales(config)}
    return {
        "cls_token": arrays[CLS][:, :1],
        "register_tokens": arrays[CLS][:, 1:],
        "mask_token": mask_token[None],
        "pos_embed": np.concatenate([slot, positions], axis=1),
        "patch_embed.proj.weight": arrays[f"{_EMBEDDING}/kernel"].transpose(3, 2, 0, 1),
        "patch_embed.proj.bias": arrays[f"{_EMBEDDING}/bias"],
        **_pack(arrays, config, VISION),
        **ones,
    }


def vision_from_torch(
    arrays: Arrays, config: VisionConfig, shapes: Shapes
) -> tuple[Arrays, Float[np.ndarray, "d"]]:
    """Scenic's arrays of these `shapes`, and the mask token."""
    arrays = _fold_layer_scale(arrays, config)
    positions = arrays["pos_embed"]
    cls = arrays["cls_token"] + positions[:, :1]
    kernel = arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    scenic = {
        CLS: np.concatenate([cls, arrays["register_tokens"]], axis=1),
        POSITIONS: positions[:, 1:].reshape(shapes[POSITIONS]),
        f"{_EMBEDDING}/kernel": np.ascontiguousarray(kernel),
        f"{_EMBEDDING}/bias": arrays["patch_embed.proj.bias"],
        **_unpack(arrays, config, VISION, shapes),
    }
    return scenic, arrays["mask_token"][0]


def text_to_torch(arrays: Arrays, config: TextConfig) -> Arrays:
    """Returns the state of PyTorch's text encoder, without the temperature."""
    table = {"token_embedding.weight": arrays["token_emb/emb_var"]}
    return {**table, **_pack(arrays, config, TEXT)}


def text_from_torch(arrays: Arrays, config: TextConfig, shapes: Shapes) -> Arrays:
    """Returns Scenic's arrays of these `shapes`."""
    table = {"token_emb/emb_var": arrays["token_embedding.weight"]}
    return {**table, **_unpack(arrays, config, TEXT, shapes)}


def vision_shapes(config: VisionConfig, shapes: Shapes) -> Shapes:
    """Returns the shapes of PyTorch's arrays, from the `shapes` of Scenic's."""
    width, patch = config.width, config.patch_size_px
    return {
        "cls_token": (1, 1, width),
        "register_tokens": (1, 1, width),
        "mask_token": (1, width),
        "pos_embed": (1, 1 + math.prod(config.position_grid), width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **{stack.name: stack.shape(shapes) for stack in _stacks(config, VISION)},
        **dict.fromkeys(_layer_scales(config), (width,)),
    }


def text_shapes(config: TextConfig, shapes: Shapes) -> Shapes:
    """Returns the shapes of PyTorch's arrays, from the `shapes` of Scenic's."""
    return {
        "token_embedding.weight": (config.vocabulary_size, config.width),
        **{stack.name: stack.shape(shapes) for stack in _stacks(config, TEXT)},
    }


def _pack(arrays: Arrays, config: TransformerConfig, names: _Names) -> Arrays:
    return {stack.name: stack.pack(arrays) for stack in _stacks(config, names)}


def _unpack(
    arrays: Arrays, config: TransformerConfig, names: _Names, shapes: Shapes
) -> Arrays:
    found: Arrays = {}
    for stack in _stacks(config, names):
        found |= stack.unpack(arrays[stack.name], shapes)
    return found


def _stacks(config: TransformerConfig, names: _Names) -> Iterator[_Stack]:
    """Everything that both towers have."""
    for i in range(config.n_layers):
        block, torch_block = names.block.format(i), names.torch_block.format(i)
        for number, norm in enumerate(names.norms):
            yield from _norm(f"{block}LayerNorm_{number}", f"{torch_block}{norm}")
        qkv = [f"{block}{_ATTENTION}/{part}" for part in ("query", "key", "value")]
        yield from _linear(qkv, f"{torch_block}{names.qkv}")
        out = [f"{block}{_ATTENTION}/out"]
        yield from _linear(out, f"{torch_block}{names.out}.")
        for name, layers in _feed_forward(config, names):
            yield from _linear([block + x for x in layers], f"{torch_block}{name}.")
    yield from _norm(*names.last_norm)


def _feed_forward(
    config: TransformerConfig, names: _Names
) -> tuple[tuple[str, list[str]], ...]:
    """PyTorch's layers, and those of Scenic that each consists of."""
    if config.feed_forward is FeedForward.SWIGLU:
        gate, up, down = (f"FFNSwiGluFused_0/Dense_{i}" for i in range(3))
        return (_SWIGLU[0], [gate, up]), (_SWIGLU[1], [down])
    first, last = names.mlp
    return (first, ["MlpBlock_0/Dense_0"]), (last, ["MlpBlock_0/Dense_1"])


def _norm(key: str, name: str) -> Iterator[_Stack]:
    yield _Stack(f"{name}.weight", (f"{key}/scale",))
    yield _Stack(f"{name}.bias", (f"{key}/bias",))


def _linear(keys: list[str], prefix: str) -> Iterator[_Stack]:
    yield _Stack(f"{prefix}weight", tuple(f"{key}/kernel" for key in keys))
    yield _Stack(f"{prefix}bias", tuple(f"{key}/bias" for key in keys))


def _layer_scales(config: VisionConfig) -> dict[str, str]:
    """Factors of residual branches, and the layers whose outputs they multiply."""
    is_swiglu = config.feed_forward is FeedForward.SWIGLU
    mlp = _SWIGLU[1] if is_swiglu else VISION.mlp[1]
    return {
        f"blocks.{i}.{scale}.gamma": f"blocks.{i}.{layer}"
        for i in range(config.n_layers)
        for scale, layer in (("ls1", VISION.out), ("ls2", mlp))
    }


def _fold_layer_scale(arrays: Arrays, config: VisionConfig) -> Arrays:
    """The same function without LayerScale; factors of one change no bit."""
    folded = dict(arrays)
    for scale, layer in _layer_scales(config).items():
        factors = arrays[scale]
        folded[f"{layer}.weight"] = arrays[f"{layer}.weight"] * factors[:, None]
        folded[f"{layer}.bias"] = arrays[f"{layer}.bias"] * factors
    return folded
