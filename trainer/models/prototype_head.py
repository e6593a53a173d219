"""The prototype head of self-distillation: tokens in, narrow unit vectors out.

The logits are the cosines of these vectors with the prototypes. No model computes
them: for all patches of a batch they would be larger than the rest of the step, so the
losses take both factors and multiply them in chunks.
Source: DINO, Caron et al. 2021, arXiv:2104.14294; two heads as in iBOT, Zhou et al.
2022, arXiv:2111.07832.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from trainer.config import ComputeConfig, HeadConfig
from trainer.distributed.sharding import gather, shard_rows
from trainer.models.layers import (
    PLAIN,
    Linear,
    ParamMaker,
    l2_normalize,
    n_matrix_weights,
    normal,
)

# DINO cuts the normal distribution off at 2, a hundred standard deviations.
_INIT = normal(0.02)


class PrototypeHeads(nnx.Module):
    """One head for CLS tokens and one for patches, or one that both share.

    The parameters are under `cls` and `patches`, or under `shared`.
    """

    def __init__(
        self, config: HeadConfig, width: int, make: ParamMaker, compute: ComputeConfig
    ):
        self._is_shared = config.is_shared
        for name in ("shared",) if config.is_shared else ("cls", "patches"):
            setattr(self, name, PrototypeHead(config, width, make, compute))

    @property
    def cls_head(self) -> "PrototypeHead":
        """The head for CLS tokens."""
        return self.shared if self._is_shared else self.cls

    @property
    def patch_head(self) -> "PrototypeHead":
        """The head for patches."""
        return self.shared if self._is_shared else self.patches


class PrototypeHead(nnx.Module):
    """An MLP with a narrow end, and the prototypes that its output is compared with."""

    def __init__(
        self, config: HeadConfig, width: int, make: ParamMaker, compute: ComputeConfig
    ):
        self._dtype = compute.dtype
        self._n_layers = config.n_layers
        hidden = [config.hidden_dim] * (config.n_layers - 1)
        sizes = [width, *hidden, config.bottleneck_dim]
        for i, (n_inputs, n_outputs) in enumerate(itertools.pairwise(sizes)):
            layer = Linear((n_inputs,), (n_outputs,), make, kernel_init=_INIT)
            setattr(self, f"Dense_{i}", layer)
        self.prototypes = Prototypes(config, make)

    def __call__(self, tokens: Float[Array, "*b d"]) -> Float[Array, "*b bottleneck"]:
        """Returns unit vectors, rounded from float32 to the type of the layers."""
        *hidden, narrow = [getattr(self, f"Dense_{i}") for i in range(self._n_layers)]
        x = tokens.astype(self._dtype)
        for layer in hidden:
            x = jax.nn.gelu(layer(x))
        return shard_rows(l2_normalize(narrow(x, jnp.float32)).astype(self._dtype))


class Prototypes(nnx.Module):
    """The last layer of the head, without a bias.

    Its columns have length 1, as with DINO's weight normalization. The norms are not
    learned: DINO found their training unstable.
    """

    def __init__(self, config: HeadConfig, make: ParamMaker):
        self.kernel = make(_INIT, config.bottleneck_dim, config.n_prototypes)

    def __call__(self) -> Float[Array, "bottleneck k"]:
        """Returns the columns, float32."""
        return gather(l2_normalize(self.kernel[...].T).T)


def head_flops(config: HeadConfig, width: int) -> int:
    """Operations of one token through head and prototypes, forward."""
    head = PrototypeHead(config, width, ParamMaker(None), PLAIN)
    return 2 * n_matrix_weights(head)
