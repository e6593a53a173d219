"""Both encoders and the two temperatures of the contrastive losses.

There is no projection: the embedding of an image is a CLS token, that of a text the
average of its tokens, and both have the same width. The prototype head of the
self-supervised losses joins `TwoTower` as a third module beside `vision` and `text`.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32, UInt8

from trainer.config import ModelConfig
from trainer.models.layers import ParamMaker, constant
from trainer.models.text import TextEncoder
from trainer.models.vit import VisionOutput, VisionTransformer


class TwoTower(nnx.Module):
    def __init__(self, config: ModelConfig, make: ParamMaker):
        self.vision = VisionTransformer(config.vision, make)
        self.text = TextEncoder(config.text, make)
        start = math.log(config.initial_temperature)
        # As logarithms they stay positive; exports store what divides the logits.
        init = constant(start)
        self.log_temperature_alt_text = make(init)
        self.log_temperature_synthetic_caption = make(init)

    def encode_image(self, image: UInt8[Array, "b h w 3"]) -> VisionOutput:
        return self.vision(image.astype(jnp.float32) / 255)

    def encode_text(self, ids: Int32[Array, "b t"]) -> Float[Array, "b d"]:
        return self.text(ids)

    def temperatures(self) -> dict[str, Float[Array, ""]]:
        """Divisors of the cosine, by the text that each belongs to."""
        return {
            "alt_text": jnp.exp(self.log_temperature_alt_text[...]),
            "synthetic_caption": jnp.exp(self.log_temperature_synthetic_caption[...]),
        }


def graph(config: ModelConfig) -> nnx.GraphDef:
    """The model without its parameters: `nnx.merge(graph(config), params)`."""
    return nnx.graphdef(TwoTower(config, ParamMaker(None)))


def abstract_params(config: ModelConfig) -> dict:
    """Shapes and types of the parameters, as a nested dictionary."""
    return nnx.to_pure_dict(nnx.state(TwoTower(config, ParamMaker(None))))


def init_params(config: ModelConfig, rng_seed: int) -> dict:
    """Parameters of an untrained model, as a nested dictionary."""
    model = TwoTower(config, ParamMaker(rng_seed))
    return nnx.to_pure_dict(nnx.state(model))
