"""Both encoders, the temperatures of the contrastive losses, and the prototype heads.

There is no projection: the embedding of an image is a CLS token, that of a text is the
mean of its tokens, and both have the same width. Self-supervision adds the prototype
heads and the mask token. These are stored next to `vision` and `text`, whose
parameters an export holds.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, Key, UInt8

from trainer.config import ComputeConfig, ContrastiveLoss, ModelConfig
from trainer.models.layers import PLAIN, ZEROS, ParamMaker, constant
from trainer.models.prototype_head import PrototypeHeads
from trainer.models.text_encoder import TextEncoder
from trainer.models.vit import Masked, VisionOutput, VisionTransformer, resize_grid


class TwoTower(nnx.Module):
    """The student. It has `head` and `mask_token` only with `has_head`."""

    def __init__(
        self,
        config: ModelConfig,
        make: ParamMaker,
        *,
        has_head: bool = False,
        compute: ComputeConfig = PLAIN,
    ):
        self.vision = VisionTransformer(config.vision, make, compute)
        self.text = TextEncoder(config.text, make, compute)
        start = math.log(config.initial_temperature)
        # As logarithms they stay positive; exports store what divides the logits.
        init = constant(start)
        self.log_temperature_alt_text = make(init)
        self.log_temperature_synthetic_caption = make(init)
        if config.contrastive_loss is ContrastiveLoss.SIGMOID:
            self.bias_alt_text = make(constant(config.initial_bias))
            self.bias_synthetic_caption = make(constant(config.initial_bias))
        # Last, so that the towers start the same with a head and without.
        if has_head:
            self.head = PrototypeHeads(config.head, config.vision.width, make, compute)
            self.mask_token = make(ZEROS, config.vision.width)

    def encode_image(
        self,
        image: UInt8[Array, "b h w 3"],
        mask: Bool[Array, "b gh gw"] | None = None,
        keys: Key[Array, "b"] | None = None,
    ) -> VisionOutput:
        """Encodes images; the mask token replaces patches where `mask` is True.

        With `keys` for the rows, blocks drop branches, in training only.
        """
        masked = None if mask is None else Masked(mask, self.mask_token[...])
        return self.vision(unit_range(image), masked, keys)

    def encode_text(
        self, ids: Int32[Array, "b t"], keys: Key[Array, "b"] | None = None
    ) -> Float[Array, "b d"]:
        """Encodes rows of token ids; see `TextEncoder`."""
        return self.text(ids, keys)

    def temperatures(self) -> dict[str, Float[Array, ""]]:
        """Divisors of the cosine, by the kind of text that each belongs to."""
        return {
            "alt_text": jnp.exp(self.log_temperature_alt_text[...]),
            "synthetic_caption": jnp.exp(self.log_temperature_synthetic_caption[...]),
        }

    def biases(self) -> dict[str, Float[Array, ""]] | None:
        """Biases that the sigmoid loss adds to the logits; None with InfoNCE."""
        if not hasattr(self, "bias_alt_text"):
            return None
        return {
            "alt_text": self.bias_alt_text[...],
            "synthetic_caption": self.bias_synthetic_caption[...],
        }


class ImageTeacher(nnx.Module):
    """The teacher: an image encoder and prototype heads."""

    def __init__(self, config: ModelConfig, make: ParamMaker, compute: ComputeConfig):
        self.vision = VisionTransformer(config.vision, make, compute)
        self.head = PrototypeHeads(config.head, config.vision.width, make, compute)

    def encode_image(self, image: UInt8[Array, "b h w 3"]) -> VisionOutput:
        """Encodes images, none of whose patches are hidden."""
        return self.vision(unit_range(image))


def unit_range(image: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Maps pixels to [0, 1], as the image encoder takes them."""
    return image.astype(jnp.float32) / 255


def graph(
    config: ModelConfig,
    *,
    has_head: bool = False,
    compute: ComputeConfig = PLAIN,
) -> nnx.GraphDef:
    """Returns the model without its parameters: `nnx.merge(graph(config), params)`."""
    make = ParamMaker(None)
    return nnx.graphdef(TwoTower(config, make, has_head=has_head, compute=compute))


def teacher_graph(config: ModelConfig, compute: ComputeConfig = PLAIN) -> nnx.GraphDef:
    """Returns the teacher without its parameters, which are `vision` and `head`."""
    return nnx.graphdef(ImageTeacher(config, ParamMaker(None), compute))


def abstract_params(config: ModelConfig, *, has_head: bool = False) -> dict:
    """Returns shapes and types of the parameters, as a nested dictionary."""
    model = TwoTower(config, ParamMaker(None), has_head=has_head)
    return nnx.to_pure_dict(nnx.state(model))


def init_params(config: ModelConfig, rng_seed: int, *, has_head: bool = False) -> dict:
    """Returns the parameters of an untrained model, as a nested dictionary."""
    draws = param_draws(config, rng_seed, has_head=has_head)
    return jax.tree.map(lambda draw: jnp.asarray(draw()), draws)


def param_draws(config: ModelConfig, rng_seed: int, *, has_head: bool = False) -> dict:
    """Returns functions, each of which draws a parameter of an untrained model.

    Call each once.
    """
    make = ParamMaker(rng_seed, is_lazy=True)
    return nnx.to_pure_dict(nnx.state(TwoTower(config, make, has_head=has_head)))


def resize_positions(params: dict, grid: tuple[int, int]) -> dict:
    """Returns the parameters with learned positions for `grid`, which is (rows,
    columns).

    For a phase at a higher resolution: 224 px has a grid of (16, 16), 448 px (32, 32).
    Without `vision` among them nothing changes.
    """
    if "vision" not in params:
        return params
    encoder = params["vision"]["encoder"]
    tokens = encoder["ToTokenSequence_0"]
    positions = resize_grid(tokens["posembed_input"], *grid)
    tokens = {**tokens, "posembed_input": positions}
    encoder = {**encoder, "ToTokenSequence_0": tokens}
    return {**params, "vision": {**params["vision"], "encoder": encoder}}
