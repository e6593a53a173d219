"""The image encoder of TIPS: a vision transformer with two CLS tokens.

Parameters have the paths of the released checkpoints, such as
`encoder/transformer/encoderblock_0/LayerNorm_0/scale`.
Source: google-deepmind/tips, `scenic/models/vit.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from trainer.config import VisionConfig
from trainer.models.transformer import Transformer, layer_norm

N_CLS_TOKENS = 2


class VisionOutput(NamedTuple):
    """Tokens after the final norm."""

    cls: Float[Array, "b 2 d"]  # CLS 1 (alt text), CLS 2 (synthetic captions)
    patches: Float[Array, "b gh gw d"]  # rows from the top


class VisionTransformer(nnx.Module):
    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs)

    def __call__(self, image: Float[Array, "b h w 3"]) -> VisionOutput:
        """`image` is RGB in [0, 1], without any other normalisation."""
        return self.encoder(image)


class Encoder(nnx.Module):
    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.ToTokenSequence_0 = ToTokenSequence(config, rngs)
        self.transformer = Transformer(config, rngs)
        self.encoder_norm = layer_norm(config.width, rngs)

    def __call__(self, image: Float[Array, "b h w 3"]) -> VisionOutput:
        grid, cls = self.ToTokenSequence_0(image)
        b, gh, gw, d = grid.shape
        tokens = jnp.concatenate([cls, grid.reshape(b, gh * gw, d)], axis=1)
        tokens = self.encoder_norm(self.transformer(tokens))
        patches = tokens[:, N_CLS_TOKENS:].reshape(b, gh, gw, d)
        return VisionOutput(tokens[:, :N_CLS_TOKENS], patches)


class ToTokenSequence(nnx.Module):
    """Patches with their learned positions, and CLS tokens, which have none.

    Both CLS tokens start at zero and hence equal; the first gradient splits them.
    A mask token for the masked patch loss replaces patches here, after the embedding
    and before the positions.
    """

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        gh, gw = config.position_grid
        width = config.width
        init_positions = nnx.initializers.normal(width**-0.5)
        self.embedding = PatchEmbedding(config, rngs)
        self.posembed_input = nnx.Param(
            init_positions(rngs.params(), (1, gh, gw, width), jnp.float32)
        )
        self.cls = nnx.Param(jnp.zeros((1, N_CLS_TOKENS, width)))

    def __call__(
        self, image: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b gh gw d"], Float[Array, "b 2 d"]]:
        grid = self.embedding(image)
        positions = resize_grid(self.posembed_input[...], *grid.shape[1:3])
        cls = jnp.broadcast_to(
            self.cls[...], (len(image), N_CLS_TOKENS, grid.shape[-1])
        )
        return grid + positions, cls


class PatchEmbedding(nnx.Module):
    """A linear map of every patch: a convolution whose stride is its size."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        size = config.patch_size_px
        init = nnx.initializers.xavier_uniform()
        kernel = init(rngs.params(), (size * size * 3, config.width), jnp.float32)
        self.kernel = nnx.Param(kernel.reshape(size, size, 3, config.width))
        self.bias = nnx.Param(jnp.zeros(config.width))

    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b gh gw d"]:
        size, width = self.kernel.shape[0], self.kernel.shape[-1]
        image = pad_to_multiple(image, size)
        b, h, w, _ = image.shape
        gh, gw = h // size, w // size
        patches = image.reshape(b, gh, size, gw, size, 3).swapaxes(2, 3)
        patches = patches.reshape(b, gh, gw, size * size * 3)
        return patches @ self.kernel[...].reshape(-1, width) + self.bias[...]


def pad_to_multiple(
    image: Float[Array, "b h w c"], size: int
) -> Float[Array, "b h2 w2 c"]:
    """Zeros around the image up to a multiple of `size`; an odd one at the end."""
    _, h, w, _ = image.shape
    pads = [(-side % size // 2, -side % size - -side % size // 2) for side in (h, w)]
    return jnp.pad(image, ((0, 0), *pads, (0, 0)))


def resize_grid(
    positions: Float[Array, "1 gh gw d"], height: int, width: int
) -> Float[Array, "1 gh2 gw2 d"]:
    """Bilinear; averages when it shrinks, as `jax.image.resize` does by default."""
    if positions.shape[1:3] == (height, width):
        return positions
    shape = (1, height, width, positions.shape[-1])
    return jax.image.resize(positions, shape, method="bilinear")
