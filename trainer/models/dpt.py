"""The DPT decoder: four levels of a frozen image encoder in, a dense map out.

Parameters have the paths of the released heads without their first part, `decoder`:
`dpt/reassemble_blocks/out_projection_0/kernel`, `dpt/convs_0/kernel`,
`dpt/fusion_blocks_1/PreActResidualConvUnit_0/conv1/kernel`; the last layer is named
after its task. Kernels are (height, width, inputs, outputs).
Sources: Ranftl et al. 2021, arXiv:2103.13413; google-deepmind/tips,
`pytorch/decoders.py`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from trainer.config import VisionConfig
from trainer.models.layers import ZEROS, Linear, ParamMaker, float32_in_full
from trainer.models.vit import VisionOutput

N_LEVELS = 4
DEPTH = "pixel_depth_classif"
NORMALS = "pixel_normals"
SEGMENTATION = "pixel_segmentation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DptConfig:
    """The sizes of a DPT head."""

    width: int  # of the encoder
    head: str  # name of the last layer: DEPTH, NORMALS or SEGMENTATION
    n_outputs: int
    channels: int = 256  # of the fused map

    @property
    def level_channels(self) -> tuple[int, ...]:
        """An eighth, a quarter, half and all of the encoder's width."""
        return tuple(max(1, self.width // part) for part in (8, 4, 2, 1))


def levels(config: VisionConfig) -> tuple[int, ...]:
    """Returns the blocks at each quarter of the encoder: 2, 5, 8 and 11 of twelve."""
    quarters = range(1, N_LEVELS + 1)
    return tuple(math.ceil(config.n_layers * q / N_LEVELS) - 1 for q in quarters)


class DptDecoder(nnx.Module):
    """Makes a map of `n_outputs` channels; its sides are 8 times those of the grid."""

    def __init__(self, config: DptConfig, make: ParamMaker):
        self._head = config.head
        self.dpt = Dpt(config, make)
        last = Linear((config.channels,), (config.n_outputs,), make)
        setattr(self, config.head, last)

    def __call__(self, found: list[VisionOutput]) -> Float[Array, "b h w c"]:
        return getattr(self, self._head)(self.dpt(found))


class Dpt(nnx.Module):
    """Reassembles the four levels, and fuses them from the coarsest to the finest."""

    def __init__(self, config: DptConfig, make: ParamMaker):
        channels = config.channels
        self.reassemble_blocks = Reassemble(config, make)
        for i, inputs in enumerate(config.level_channels):
            conv = Conv(3, inputs, channels, make, has_bias=False)
            setattr(self, f"convs_{i}", conv)
        for i in range(N_LEVELS):
            block = FeatureFusion(channels, make, has_residual=i > 0)
            setattr(self, f"fusion_blocks_{i}", block)
        self.project = Conv(3, channels, channels, make)

    def __call__(self, found: list[VisionOutput]) -> Float[Array, "b h w c"]:
        maps = self.reassemble_blocks(found)
        maps = [getattr(self, f"convs_{i}")(x) for i, x in enumerate(maps)]
        fused = self.fusion_blocks_0(maps[-1], None)
        for i in range(1, N_LEVELS):
            block = getattr(self, f"fusion_blocks_{i}")
            fused = block(fused, maps[N_LEVELS - 1 - i])
        return self.project(fused)


class Reassemble(nnx.Module):
    """Joins patches with CLS 1; resizes the levels to 4, 2, 1 and 1/2 of the grid."""

    def __init__(self, config: DptConfig, make: ParamMaker):
        width = config.width
        for i, channels in enumerate(config.level_channels):
            readout = Linear((2 * width,), (width,), make)
            setattr(self, f"readout_projects_{i}", readout)
            projection = Conv(1, width, channels, make)
            setattr(self, f"out_projection_{i}", projection)
        sizes = config.level_channels
        self.resize_layers_0 = Enlarge(4, sizes[0], make)
        self.resize_layers_1 = Enlarge(2, sizes[1], make)
        self.resize_layers_3 = Conv(3, sizes[3], sizes[3], make, stride=2)

    def __call__(self, found: list[VisionOutput]) -> list[Float[Array, "b h w c"]]:
        return [self._level(i, output) for i, output in enumerate(found)]

    def _level(self, i: int, output: VisionOutput) -> Float[Array, "b h w c"]:
        patches = output.patches
        cls = jnp.broadcast_to(output.cls[:, None, None, 0], patches.shape)
        x = jnp.concatenate([patches, cls], axis=-1)
        x = jax.nn.gelu(getattr(self, f"readout_projects_{i}")(x))
        x = getattr(self, f"out_projection_{i}")(x)
        return x if i == 2 else getattr(self, f"resize_layers_{i}")(x)


class FeatureFusion(nnx.Module):
    """Adds a finer map to a coarser one, and doubles the size."""

    def __init__(self, channels: int, make: ParamMaker, *, has_residual: bool):
        for i in range(1 + has_residual):
            unit = PreActResidualConvUnit(channels, make)
            setattr(self, f"PreActResidualConvUnit_{i}", unit)
        self.Conv_0 = Conv(1, channels, channels, make)

    def __call__(
        self, x: Float[Array, "b h w c"], residual: Float[Array, "b h2 w2 c"] | None
    ) -> Float[Array, "b h3 w3 c"]:
        main = self.PreActResidualConvUnit_0
        if residual is not None:
            residual = jax.image.resize(residual, x.shape, "bilinear", antialias=False)
            x = x + self.PreActResidualConvUnit_0(residual)
            main = self.PreActResidualConvUnit_1
        return self.Conv_0(double(main(x)))


class PreActResidualConvUnit(nnx.Module):
    """Two convolutions with ReLU before each, and a residual branch around them."""

    def __init__(self, channels: int, make: ParamMaker):
        self.conv1 = Conv(3, channels, channels, make, has_bias=False)
        self.conv2 = Conv(3, channels, channels, make, has_bias=False)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x + self.conv2(jax.nn.relu(self.conv1(jax.nn.relu(x))))


class Conv(nnx.Module):
    """A square convolution; zeros around the map keep its size."""

    def __init__(
        self,
        size: int,
        inputs: int,
        outputs: int,
        make: ParamMaker,
        *,
        stride: int = 1,
        has_bias: bool = True,
    ):
        self._stride = stride
        self.kernel = make.kernel((size, size, inputs), (outputs,))
        if has_bias:
            self.bias = make(ZEROS, outputs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        pad = self.kernel.shape[0] // 2
        with float32_in_full(x.dtype):
            x = jax.lax.conv_general_dilated(
                x,
                self.kernel[...],
                (self._stride, self._stride),
                [(pad, pad), (pad, pad)],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        return x + self.bias[...] if hasattr(self, "bias") else x


class Enlarge(nnx.Module):
    """Turns every pixel into `factor` x `factor` pixels: a transposed convolution.

    The kernel is stored as in Flax, rotated by 180 degrees against PyTorch's.
    """

    def __init__(self, factor: int, channels: int, make: ParamMaker):
        self._factor = factor
        self.kernel = make.kernel((factor, factor, channels), (channels,))
        self.bias = make(ZEROS, channels)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        b, h, w, c = x.shape
        kernel = self.kernel[...][::-1, ::-1]
        with float32_in_full(x.dtype):
            squares = jnp.einsum("bhwc,yxcd->bhywxd", x, kernel)
        shape = (b, h * self._factor, w * self._factor, c)
        return squares.reshape(shape) + self.bias[...]


def double(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Doubles the size, bilinear, with corners on corners."""
    rows, columns = (_alignment_weights(side, 2 * side) for side in x.shape[1:3])
    with float32_in_full(x.dtype):
        return jnp.einsum("bhwc,yh,xw->byxc", x, rows, columns)


def _alignment_weights(n: int, m: int) -> Float[Array, "m n"]:
    """Weights of `n` samples in `m`; the first and the last are those of the `n`."""
    places = jnp.linspace(0, n - 1, m)
    return jnp.maximum(0, 1 - jnp.abs(places[:, None] - jnp.arange(n)))
