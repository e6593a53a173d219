"""The image encoder as a StableHLO program, for JAX and compilers, and its weights.

    encode = jax.export.deserialize(open("image_encoder.stablehlo", "rb").read()).call
    weights = safetensors.numpy.load_file("image_encoder.safetensors")
    cls, patches = encode(weights, pixel_values)

Takes and returns what the ONNX graph does, on CPU, GPU and TPU; see `onnx_graph`. The
weights are apart since a program takes minutes to hold a gigabyte of them.
"""

import pathlib
from collections.abc import Mapping

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx, traverse_util
from jaxtyping import Array, Float

from trainer.exchange.exported_weights import ExportedWeights
from trainer.models.layers import ParamMaker
from trainer.models.vit import VisionTransformer, flatten_grid

FILE, WEIGHTS = "image_encoder.stablehlo", "image_encoder.safetensors"
_PLATFORMS = ("cpu", "cuda", "tpu")


def write(model: ExportedWeights, folder: pathlib.Path) -> None:
    """Writes `image_encoder.stablehlo` and `image_encoder.safetensors`."""
    graph = nnx.graphdef(VisionTransformer(model.model.vision, ParamMaker(None)))

    def encode(
        weights: Mapping[str, Array], pixel_values: Float[Array, "b 3 h w"]
    ) -> tuple[Float[Array, "b 2 d"], Float[Array, "b p d"]]:
        vision = traverse_util.unflatten_dict(weights, sep="/")
        image = jnp.moveaxis(pixel_values, 1, -1)
        cls, patches = nnx.merge(graph, vision)(image)
        return cls, flatten_grid(patches)

    side = model.size_px
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, 3, side, side), jnp.float32)
    shapes = {
        path: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for path, array in model.vision.items()
    }
    program = jax.export.export(jax.jit(encode), platforms=_PLATFORMS)(shapes, images)
    (folder / FILE).write_bytes(program.serialize())
    arrays = {path: np.ascontiguousarray(x) for path, x in model.vision.items()}
    safetensors.numpy.save_file(arrays, folder / WEIGHTS)
