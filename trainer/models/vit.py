"""The image encoder of TIPS: a vision transformer with two CLS tokens.

Parameters have the paths of the released checkpoints, such as
`encoder/transformer/encoderblock_0/LayerNorm_0/scale`.
Source: google-deepmind/tips, `scenic/models/vit.py`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from trainer.config import ComputeConfig, VisionConfig
from trainer.distributed.sharding import shard_rows
from trainer.models.layers import (
    PLAIN,
    ZEROS,
    LayerNorm,
    Linear,
    ParamMaker,
    lecun_normal,
    normal,
)
from trainer.models.transformer import EncoderBlock, Transformer, transformer_flops

N_CLS_TOKENS = 2
_REGISTER_INIT = normal(1e-6)  # as in DINOv2


class VisionOutput(NamedTuple):
    """Tokens after the final norm, float32."""

    cls: Float[Array, "b 2 d"]  # CLS 1 (alt text), CLS 2 (synthetic captions)
    patches: Float[Array, "b gh gw d"]  # rows from the top


class Masked(NamedTuple):
    """Hidden patches, and the token that replaces them."""

    mask: Bool[Array, "b gh gw"]
    token: Float[Array, "d"]


class VisionTransformer(nnx.Module):
    """Maps images to two CLS tokens and a grid of patches."""

    def __init__(
        self,
        config: VisionConfig,
        make: ParamMaker,
        compute: ComputeConfig = PLAIN,
    ):
        self._dtype = compute.dtype
        self.encoder = Encoder(config, make, compute)

    def __call__(
        self,
        image: Float[Array, "b h w 3"],
        masked: Masked | None = None,
        keys: Key[Array, "b"] | None = None,
    ) -> VisionOutput:
        """`image` is RGB in [0, 1], without any other normalization.

        `keys` are those of `Transformer`.
        """
        return self.encoder(image.astype(self._dtype), masked, keys)

    def intermediate(
        self, image: Float[Array, "b h w 3"], layers: Sequence[int]
    ) -> list[VisionOutput]:
        """Returns the outputs of the blocks with these numbers, normalized."""
        tokens, grid = self.encoder.embed(image.astype(self._dtype), None)
        found = []
        for block in self.encoder.transformer.blocks:
            tokens = block(tokens, None)
            found.append(tokens)
        return [self.encoder.output(found[layer], grid) for layer in layers]

    def value_patches(
        self, image: Float[Array, "b h w 3"]
    ) -> Float[Array, "b gh gw d"]:
        """Returns patches by the values of the last block; they are closer to texts."""
        tokens, grid, last = self._before_last(image)
        return self.encoder.output(last.attend_to_self(tokens), grid).patches

    def cls_attention(
        self, image: Float[Array, "b h w 3"]
    ) -> Float[Array, "b heads 2 t"]:
        """Attention weights of both CLS tokens in the last block, CLS tokens first.

        Those of registers are left out.
        """
        tokens, _, last = self._before_last(image)
        weights = last.attention(tokens, N_CLS_TOKENS)
        after = self.encoder.n_prefix_tokens
        parts = weights[..., :N_CLS_TOKENS], weights[..., after:]
        return jnp.concatenate(parts, axis=-1)

    def _before_last(
        self, image: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b t d"], tuple[int, int], EncoderBlock]:
        """The input of the last block, the grid of patches, and the block."""
        tokens, grid = self.encoder.embed(image.astype(self._dtype), None)
        *blocks, last = self.encoder.transformer.blocks
        for block in blocks:
            tokens = block(tokens, None)
        return tokens, grid, last


class Encoder(nnx.Module):
    """Tokens, the transformer, and the final norm."""

    def __init__(self, config: VisionConfig, make: ParamMaker, compute: ComputeConfig):
        self.n_prefix_tokens = N_CLS_TOKENS + config.n_registers  # before patches
        self.ToTokenSequence_0 = ToTokenSequence(config, make)
        self.transformer = Transformer(config, make, compute)
        self.encoder_norm = LayerNorm(config.width, make)

    def __call__(
        self,
        image: Float[Array, "b h w 3"],
        masked: Masked | None,
        keys: Key[Array, "b"] | None,
    ) -> VisionOutput:
        tokens, grid = self.embed(image, masked)
        return self.output(self.transformer(tokens, keys=keys), grid)

    def embed(
        self, image: Float[Array, "b h w 3"], masked: Masked | None
    ) -> tuple[Float[Array, "b t d"], tuple[int, int]]:
        """Returns the input of the first block, and the rows and columns of patches."""
        grid, prefix = self.ToTokenSequence_0(image, masked)
        b, gh, gw, d = grid.shape
        return jnp.concatenate([prefix, grid.reshape(b, gh * gw, d)], axis=1), (gh, gw)

    def output(
        self, tokens: Float[Array, "b t d"], grid: tuple[int, int]
    ) -> VisionOutput:
        """Applies the final norm to the output of a block."""
        tokens = shard_rows(self.encoder_norm(tokens.astype(jnp.float32)))
        patches = tokens[:, self.n_prefix_tokens :].reshape(tokens.shape[0], *grid, -1)
        return VisionOutput(tokens[:, :N_CLS_TOKENS], patches)


class ToTokenSequence(nnx.Module):
    """Makes patches with their learned positions, CLS tokens and registers without.

    Both CLS tokens start at zero by default, as in the authors' code, hence equal; the
    first gradient separates them. The patch embedding starts as theirs, LeCun-normal.
    The mask token replaces patches after the embedding and before the positions, as in
    DINOv2 (arXiv:2304.07193): the model still sees where a hidden patch is.
    """

    def __init__(self, config: VisionConfig, make: ParamMaker):
        gh, gw = config.position_grid
        width = config.width
        init_positions = normal(width**-0.5)
        self._patch_size = config.patch_size_px
        # A convolution whose stride is its size: a linear map of every patch.
        patch = (config.patch_size_px, config.patch_size_px, 3)
        init = lecun_normal(math.prod(patch))
        self.embedding = Linear(patch, (width,), make, kernel_init=init)
        self.posembed_input = make(init_positions, 1, gh, gw, width)
        std = config.cls_init_stddev
        self.cls = make(normal(std) if std else ZEROS, 1, N_CLS_TOKENS, width)
        if config.n_registers:
            self.registers = make(_REGISTER_INIT, 1, config.n_registers, width)

    def __call__(
        self, image: Float[Array, "b h w 3"], masked: Masked | None
    ) -> tuple[Float[Array, "b gh gw d"], Float[Array, "b prefix d"]]:
        grid = self.embedding(to_patches(image, self._patch_size))
        if masked is not None:
            grid = jnp.where(masked.mask[..., None], masked.token, grid)
        positions = resize_grid(self.posembed_input[...], *grid.shape[1:3])
        prefix = self.cls[...]
        if hasattr(self, "registers"):
            prefix = jnp.concatenate([prefix, self.registers[...]], axis=1)
        prefix = jnp.broadcast_to(prefix, (image.shape[0], *prefix.shape[1:]))
        return (grid + positions).astype(image.dtype), prefix.astype(image.dtype)


def to_patches(
    image: Float[Array, "b h w c"], size: int
) -> Float[Array, "b gh gw size size c"]:
    """Cuts images into squares, padded with zeros to a multiple of `size`."""
    image = pad_to_multiple(image, size)
    b, h, w, c = image.shape
    grid = image.reshape(b, h // size, size, w // size, size, c)
    return grid.swapaxes(2, 3)


def pad_to_multiple(
    image: Float[Array, "b h w c"], size: int
) -> Float[Array, "b h2 w2 c"]:
    """Pads with zeros on both sides to a multiple of `size`; an odd one goes last."""
    _, h, w, _ = image.shape
    pads = [(-side % size // 2, -side % size - -side % size // 2) for side in (h, w)]
    return jnp.pad(image, ((0, 0), *pads, (0, 0)))


def resize_grid(
    positions: Float[Array, "1 gh gw d"], height: int, width: int
) -> Float[Array, "1 gh2 gw2 d"]:
    """Resizes bilinearly; averages when it shrinks, as `jax.image.resize` does."""
    if positions.shape[1:3] == (height, width):
        return positions
    shape = (1, height, width, positions.shape[-1])
    return jax.image.resize(positions, shape, method="bilinear")


def vision_flops(config: VisionConfig, size_px: int) -> int:
    """Operations of one image of `size_px` by `size_px`, forward.

    Two for each multiply-add of a matrix product, as everywhere in `trainer.models`.
    """
    n = n_patches(config, size_px)
    embedding = 2 * n * 3 * config.patch_size_px**2 * config.width
    return embedding + transformer_flops(config, N_CLS_TOKENS + config.n_registers + n)


def n_patches(config: VisionConfig, size_px: int) -> int:
    """Number of patches of an image of `size_px` by `size_px`."""
    return (size_px // config.patch_size_px) ** 2


def flatten_grid(patches: Float[Array, "b gh gw d"]) -> Float[Array, "b p d"]:
    """Patches row by row."""
    return patches.reshape(patches.shape[0], -1, patches.shape[-1])
