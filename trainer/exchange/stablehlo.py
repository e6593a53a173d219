"""The image encoder as a StableHLO program with its weights, for JAX and compilers.

    encode = jax.export.deserialize(open("image_encoder.stablehlo", "rb").read()).call
    cls, patches = encode(pixel_values)

Takes and returns what the ONNX graph does, on CPU, GPU and TPU; see `onnx_graph`.
"""

import pathlib

import jax
import jax.export
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from trainer.exchange.exported_weights import ExportedWeights
from trainer.models.layers import ParamMaker
from trainer.models.vit import VisionTransformer, flatten_grid

FILE = "image_encoder.stablehlo"
_PLATFORMS = ("cpu", "cuda", "tpu")


def write(model: ExportedWeights, folder: pathlib.Path) -> None:
    """Writes `image_encoder.stablehlo`."""
    graph = nnx.graphdef(VisionTransformer(model.model.vision, ParamMaker(None)))
    vision = model.params()["vision"]

    def encode(
        pixel_values: Float[Array, "b 3 h w"],
    ) -> tuple[Float[Array, "b 2 d"], Float[Array, "b p d"]]:
        image = jnp.moveaxis(pixel_values, 1, -1)
        cls, patches = nnx.merge(graph, vision)(image)
        return cls, flatten_grid(patches)

    side = model.size_px
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, 3, side, side), jnp.float32)
    program = jax.export.export(jax.jit(encode), platforms=_PLATFORMS)(images)
    (folder / FILE).write_bytes(program.serialize())
