"""The text encoder of TIPS: a transformer, and the mean of its valid tokens.

Parameters have the paths of the released checkpoints, such as `token_emb/emb_var`.
Source: google-deepmind/tips, `scenic/models/text.py`.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32, Key

from trainer.config import PAD_ID, ComputeConfig, TextConfig
from trainer.distributed.sharding import shard_rows
from trainer.models.layers import PLAIN, LayerNorm, ParamMaker, normal
from trainer.models.transformer import Transformer, transformer_flops

MAX_TIMESCALE = 1e4


class TextEncoder(nnx.Module):
    """Maps rows of token ids to one vector per text."""

    def __init__(
        self,
        config: TextConfig,
        make: ParamMaker,
        compute: ComputeConfig = PLAIN,
    ):
        self._dtype = compute.dtype
        self.token_emb = TokenEmbedding(config, make)
        self.transformer = Transformer(config, make, compute)
        self.text_encoder_norm = LayerNorm(config.width, make)

    def __call__(
        self, ids: Int32[Array, "b t"], keys: Key[Array, "b"] | None = None
    ) -> Float[Array, "b d"]:
        """Returns one float32 vector per text, not normalized. Rows are padded with id
        0.

        A text without a token gives zeros. `keys` are those of `Transformer`.
        """
        is_valid = ids != PAD_ID
        x = self.token_emb(ids)
        x = x + sinusoid_positions(ids.shape[1], x.shape[-1])
        x = self.transformer(x.astype(self._dtype), is_valid, keys)
        x = self.text_encoder_norm(x.astype(jnp.float32))
        weights = is_valid[..., None].astype(x.dtype)
        return shard_rows((x * weights).sum(axis=1) / (weights.sum(axis=1) + 1e-8))


class TokenEmbedding(nnx.Module):
    """A table of vectors; those looked up are multiplied by sqrt(d)."""

    def __init__(self, config: TextConfig, make: ParamMaker):
        # Unit variance after the multiplication; the papers do not give a start.
        init = normal(config.width**-0.5)
        self.emb_var = make(init, config.vocabulary_size, config.width)

    def __call__(self, ids: Int32[Array, "b t"]) -> Float[Array, "b t d"]:
        return self.emb_var[...][ids] * math.sqrt(self.emb_var.shape[-1])


def sinusoid_positions(n_tokens: int, width: int) -> Float[np.ndarray, "t d"]:
    """Sines, then cosines, of position / timescale; timescales from 1 to 10,000."""
    timescales = np.geomspace(1, MAX_TIMESCALE, width // 2)
    angles = np.arange(n_tokens)[:, None] / timescales
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1, dtype=np.float32)


def text_flops(config: TextConfig) -> int:
    """Operations of one text of `max_tokens` tokens, forward."""
    return transformer_flops(config, config.max_tokens)
