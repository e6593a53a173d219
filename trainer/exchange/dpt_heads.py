"""DPT heads in the official forms, one file each: Scenic's arrays, or PyTorch's.

Released heads are `NAME_TASK_dpt.zip`: Scenic's arrays, whose keys are the paths of our
parameters after `decoder/`. PyTorch's keys are those of its modules. `numpy.load` reads
both files, and so does `load_decoder_weights` of google-deepmind/tips.

That reader rotates the kernels of transposed convolutions by 180 degrees in both forms:
so PyTorch's file has them as Scenic does, with other axes, and not as a `state_dict`
would.
Source: google-deepmind/tips, `pytorch/decoders.py`.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx, traverse_util

from trainer.exchange import npz
from trainer.exchange.exported_weights import Arrays, Shapes, check_arrays
from trainer.models.dpt import SEGMENTATION, DptConfig, DptDecoder
from trainer.models.layers import ParamMaker

SCENIC, PYTORCH = ".zip", ".npz"  # suffixes of the files that are written
_PREFIX = "decoder/"
_ALIASES = {"segmentation_head/": f"{SEGMENTATION}/"}
# From a path of Scenic to a key of PyTorch, one after the other.
_RENAMED = (
    (r"^pixel_\w+/", "head/"),
    ("reassemble_blocks/", "reassemble/"),
    ("out_projection_", "out_projections_"),
    ("fusion_blocks_0/PreActResidualConvUnit_0", "fusion_blocks_0/main_unit"),
    ("PreActResidualConvUnit_0", "residual_unit"),
    ("PreActResidualConvUnit_1", "main_unit"),
    ("Conv_0", "out_conv"),
    (r"_(\d)/", r"/\1/"),
    ("kernel$", "weight"),
    ("/", "."),
)
_TRANSPOSED = ("resize_layers_0/kernel", "resize_layers_1/kernel")


def write(path: pathlib.Path, params: Mapping[str, Any]) -> None:
    """Writes a head in the form that the suffix of the file says; see `check_name`.

    The file is complete or does not exist.
    """
    flat = traverse_util.flatten_dict(jax.device_get(params), sep="/")
    if path.suffix == SCENIC:
        named = {_PREFIX + key: array for key, array in flat.items()}
    else:
        named = {
            _torch_key(key): array.transpose(_torch_axes(key, array.ndim))
            for key, array in flat.items()
        }
    arrays: dict[str, Any] = {
        key: np.asarray(named[key], np.float32, order="C") for key in sorted(named)
    }
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:  # a name without .npz would get one
        np.savez(file, **arrays)
    os.replace(temporary, path)


def read(path: pathlib.Path, config: DptConfig) -> dict:
    """Reads the parameters of a head, in the tree of our modules.

    Raises ValueError if an array is missing, unknown or of another shape.
    """
    found = npz.load(path, "a DPT head")
    shapes = _shapes(config)
    if not any("/" in key for key in found):
        found = _from_torch(path, found, shapes)
    arrays = {_own_key(key): array for key, array in found.items()}
    check_arrays(path, arrays, shapes)
    return traverse_util.unflatten_dict(arrays, sep="/")


def check_name(path: pathlib.Path) -> None:
    """Raises ValueError unless `write` can write there."""
    if path.suffix not in (SCENIC, PYTORCH):
        raise ValueError(
            f"{path}: expected a name with {SCENIC}, Scenic's form, or {PYTORCH},"
            " PyTorch's"
        )
    if not path.parent.is_dir():
        raise ValueError(f"{path}: no folder {path.parent}, expected one")


def _from_torch(path: pathlib.Path, found: Arrays, shapes: Shapes) -> Arrays:
    """Scenic's arrays of a file of PyTorch's form."""
    key_to_axes = {key: _torch_axes(key, len(shape)) for key, shape in shapes.items()}
    expected = {
        _torch_key(key): tuple(shapes[key][axis] for axis in axes)
        for key, axes in key_to_axes.items()
    }
    check_arrays(path, found, expected)
    return {
        key: np.ascontiguousarray(found[_torch_key(key)].transpose(np.argsort(axes)))
        for key, axes in key_to_axes.items()
    }


def _shapes(config: DptConfig) -> Shapes:
    state = nnx.to_pure_dict(nnx.state(DptDecoder(config, ParamMaker(None))))
    flat = traverse_util.flatten_dict(state, sep="/")
    return {key: tuple(leaf.shape) for key, leaf in flat.items()}


def _own_key(key: str) -> str:
    key = key.removeprefix(_PREFIX)
    for alias, usual in _ALIASES.items():
        key = re.sub(f"^{alias}", usual, key)
    return key


def _torch_key(key: str) -> str:
    for pattern, new in _RENAMED:
        key = re.sub(pattern, new, key)
    return key


def _torch_axes(key: str, n_axes: int) -> tuple[int, ...]:
    """The axes of an array in the order that PyTorch has them."""
    if n_axes < 4:
        return tuple(reversed(range(n_axes)))
    return (2, 3, 0, 1) if key.endswith(_TRANSPOSED) else (3, 2, 0, 1)
