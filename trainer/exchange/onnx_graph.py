"""The image encoder as an ONNX graph, operation by operation.

The graph takes `pixel_values`, `[batch, 3, side, side]`, RGB in [0, 1], and returns
`cls`, `[batch, 2, width]`, and `patches`, `[batch, rows * columns, width]`, float32.
The size of images is fixed, the size of batches is not. It needs the package `onnx`.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config import FeedForward, VisionConfig
from trainer.exchange.exported_weights import (
    CLS,
    POSITIONS,
    REGISTERS,
    Arrays,
    ExportedWeights,
)
from trainer.models.layers import LAYER_NORM_EPSILON
from trainer.models.vit import N_CLS_TOKENS

FILE = "image_encoder.onnx"
INPUT, OUTPUTS = "pixel_values", ("cls", "patches")
_OPSET = 20  # the first with GELU
_MOST_BYTES_INSIDE = 1 << 30  # of weights; a file of protocol buffers ends at 2 GiB


def write(model: ExportedWeights, folder: pathlib.Path) -> None:
    """Writes `image_encoder.onnx`; large weights are in `image_encoder.onnx.data`."""
    onnx = import_onnx()
    graph = _Graph(onnx, model.vision)
    _add_encoder(graph, model.model.vision, model.size_px)
    side, width = model.size_px, model.model.vision.width
    n_patches = (side // model.model.vision.patch_size_px) ** 2
    float32, make = onnx.TensorProto.FLOAT, onnx.helper.make_tensor_value_info
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "image_encoder",
            [make(INPUT, float32, ["batch", 3, side, side])],
            [
                make(name, float32, ["batch", n, width])
                for name, n in zip(OUTPUTS, (N_CLS_TOKENS, n_patches), strict=True)
            ],
            graph.constants,
        ),
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
    )
    is_large = sum(array.nbytes for array in model.vision.values()) > _MOST_BYTES_INSIDE
    path = folder / FILE
    onnx.save_model(
        proto, path, save_as_external_data=is_large, location=f"{FILE}.data"
    )
    onnx.checker.check_model(path)


def import_onnx() -> Any:
    """Returns the package. Raises ValueError if it is not installed."""
    try:
        import onnx
    except ImportError as error:
        raise ValueError(
            f"--format onnx: {error}; expected the extra [onnx] to be installed"
        ) from error
    return onnx


class _Graph:
    """Nodes and constants, in the order in which they are added."""

    def __init__(self, onnx: Any, arrays: Arrays):
        self._onnx = onnx
        self.arrays = arrays
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """Adds an operation with one output, and returns its name."""
        output = f"{operation}_{len(self.nodes)}"
        self.add_to((output,), operation, *inputs, **attributes)
        return output

    def add_to(
        self, outputs: Sequence[str], operation: str, *inputs: str, **attributes: Any
    ) -> None:
        """Adds an operation whose outputs have these names."""
        node = self._onnx.helper.make_node(operation, inputs, outputs, **attributes)
        self.nodes.append(node)

    def constant(self, values: npt.ArrayLike, name: str = "") -> str:
        """Adds an array, and returns its name."""
        name = name or f"constant_{len(self.constants)}"
        array = np.ascontiguousarray(values)
        self.constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def array(self, path: str, *shape: int) -> str:
        """A parameter of the encoder, in another shape if one is given."""
        values = self.arrays[path]
        return self.constant(values.reshape(shape) if shape else values, path)

    def reshape(self, x: str, *shape: int) -> str:
        """0 keeps the size of an axis."""
        return self.add("Reshape", x, self.constant(np.array(shape, np.int64)))

    def linear(self, x: str, path: str, n_inputs: int, n_outputs: int) -> str:
        """A product with a kernel, as a matrix, and a bias."""
        kernel = self.array(f"{path}/kernel", n_inputs, n_outputs)
        product = self.add("MatMul", x, kernel)
        return self.add("Add", product, self.array(f"{path}/bias", n_outputs))

    def layer_norm(self, x: str, path: str) -> str:
        """Normalizes the last axis."""
        parameters = (self.array(f"{path}/scale"), self.array(f"{path}/bias"))
        return self.add(
            "LayerNormalization", x, *parameters, axis=-1, epsilon=LAYER_NORM_EPSILON
        )


def _add_encoder(graph: _Graph, config: VisionConfig, size_px: int) -> None:
    n_patches = (size_px // config.patch_size_px) ** 2
    x = _embed(graph, config, n_patches)
    for number in range(config.n_layers):
        x = _add_block(graph, config, x, f"encoder/transformer/encoderblock_{number}")
    x = graph.layer_norm(x, "encoder/encoder_norm")
    sizes = [N_CLS_TOKENS, n_patches]
    names = [*OUTPUTS]
    if config.n_registers:
        sizes.insert(1, config.n_registers)
        names.insert(1, "registers")
    split = graph.constant(np.array(sizes, np.int64))
    graph.add_to(names, "Split", x, split, axis=1)


def _embed(graph: _Graph, config: VisionConfig, n_patches: int) -> str:
    """Patches with positions after both CLS tokens and the registers."""
    patch, width = config.patch_size_px, config.width
    name = "encoder/ToTokenSequence_0/embedding"
    kernel = graph.arrays[f"{name}/kernel"].transpose(3, 2, 0, 1)
    grid = graph.add(
        "Conv",
        INPUT,
        graph.constant(kernel, f"{name}/kernel"),
        graph.array(f"{name}/bias"),
        strides=[patch, patch],
    )
    rows = graph.add("Transpose", graph.reshape(grid, 0, 0, n_patches), perm=[0, 2, 1])
    patches = graph.add("Add", rows, graph.array(POSITIONS, 1, n_patches, width))
    batch = graph.add("Shape", INPUT, end=1)
    prefix = graph.arrays[CLS]
    if config.n_registers:
        prefix = np.concatenate([prefix, graph.arrays[REGISTERS]], axis=1)
    rest = graph.constant(np.array(prefix.shape[1:], np.int64))
    shape = graph.add("Concat", batch, rest, axis=0)
    tokens = graph.add("Expand", graph.constant(prefix), shape)
    return graph.add("Concat", tokens, patches, axis=1)


def _add_block(graph: _Graph, config: VisionConfig, x: str, path: str) -> str:
    normed = graph.layer_norm(x, f"{path}/LayerNorm_0")
    mixed = _attend(graph, config, normed, f"{path}/MultiHeadDotProductAttention_0")
    x = graph.add("Add", x, mixed)
    normed = graph.layer_norm(x, f"{path}/LayerNorm_1")
    return graph.add("Add", x, _feed_forward(graph, config, normed, path))


def _attend(graph: _Graph, config: VisionConfig, x: str, path: str) -> str:
    width, n_heads = config.width, config.n_heads

    def heads(name: str, order: list[int]) -> str:
        rows = graph.linear(x, f"{path}/{name}", width, width)
        split = graph.reshape(rows, 0, 0, n_heads, width // n_heads)
        return graph.add("Transpose", split, perm=order)

    logits = graph.add(
        "MatMul", heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1])
    )
    root = graph.constant(np.float32(math.sqrt(width // n_heads)))
    weights = graph.add("Softmax", graph.add("Div", logits, root), axis=-1)
    mixed = graph.add("MatMul", weights, heads("value", [0, 2, 1, 3]))
    rows = graph.reshape(graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), 0, 0, width)
    return graph.linear(rows, f"{path}/out", width, width)


def _feed_forward(graph: _Graph, config: VisionConfig, x: str, path: str) -> str:
    is_gated = config.feed_forward is FeedForward.SWIGLU
    path += "/FFNSwiGluFused_0" if is_gated else "/MlpBlock_0"
    shapes: Mapping[str, tuple[int, ...]] = {
        name: graph.arrays[f"{path}/{name}/kernel"].shape
        for name in ("Dense_0", "Dense_1", *(["Dense_2"] if is_gated else []))
    }

    def dense(x: str, name: str) -> str:
        return graph.linear(x, f"{path}/{name}", *shapes[name])

    hidden = dense(x, "Dense_0")
    if is_gated:
        gate = graph.add("Mul", hidden, graph.add("Sigmoid", hidden))
        return dense(graph.add("Mul", gate, dense(x, "Dense_1")), "Dense_2")
    if config.feed_forward is FeedForward.GELU:
        return dense(graph.add("Gelu", hidden, approximate="tanh"), "Dense_1")
    return dense(graph.add("Relu", hidden), "Dense_1")
