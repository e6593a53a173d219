"""Reads and writes the weights of checkpoints in Hugging Face form.

In: a checkpoint's folder. Out: parameters in the tree of a Flax module. A parameter's
path, joined by dots, is the tensor's name, so nothing is transposed and nothing is
renamed but a few prefixes that differ between releases.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx
from jax.typing import DTypeLike
from transformers import PretrainedConfig

from pipeline.models.checkpoints import SINGLE_FILE, weight_files
from pipeline.models.checkpoints import resolve_checkpoint as resolve_checkpoint
from pipeline.models.checkpoints import weights_digest as weights_digest

Module = TypeVar("Module", bound=nnx.Module)
Config = TypeVar("Config", bound=PretrainedConfig)

# Names in files on the Hub -> parameter paths. Newer files start with `model.` besides.
_PREFIXES = {
    "language_model.model.": "language_model.",
    "vision_tower.vision_model.": "vision_tower.",
}
# transformers saves the image tower of tipsv2 with names of the text tower's MLP.
_MLP_OF_TIPSV2 = re.compile(r"(vision_encoder\.blocks\.\d+\.mlp)\.c_(fc|proj)\.")
_FC_OF_TIPSV2 = {"fc": "fc1", "proj": "fc2"}
# The head is tied to the token table, and position ids are no weights. Of tipsv2 what
# training alone needs.
_IGNORED = re.compile(
    r"(.*\.)?(lm_head\.weight|position_ids)|vision_encoder\.mask_token|temperature"
)


def model_type_of(folder: Path) -> str | None:
    """What kind of model a checkpoint says that it is."""
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"checkpoint={str(folder)!r}: expected config.json in it")
    return json.loads(path.read_text()).get("model_type")


def load_config(folder: Path, kind: type[Config]) -> Config:
    """A checkpoint's configuration; ValueError if it is of another kind of model."""
    model_type = model_type_of(folder)
    if model_type != kind.model_type:
        raise ValueError(
            f"checkpoint={str(folder)!r} has model_type={model_type!r}: "
            f"expected {kind.model_type!r}"
        )
    return kind.from_pretrained(folder)


def load_module(
    build: Callable[[nnx.Rngs], Module],
    folder: Path,
    dtype: DTypeLike,
    place: Callable[[str, np.ndarray], jax.Array] = lambda name, x: jnp.asarray(x),
) -> tuple[nnx.GraphDef[Module], nnx.State]:
    """Structure and parameters of `build(rngs)`, with the weights of a checkpoint.

    `build` is only traced: no random weights are made. Tensors are read one at a time,
    cast to `dtype` and given to `place(name, tensor)`, which puts them on devices; the
    host never holds a second copy. Raises ValueError as `check_module`.
    """
    graph, name_to_place = check_module(build, folder)
    loaded = []
    for name, tensor in _stored_tensors(folder):
        path, variable = name_to_place[name]
        loaded.append(
            (path, variable.replace(place(name, tensor.astype(dtype, copy=False))))
        )
        del tensor
    return graph, nnx.from_flat_state(loaded)


def check_module(
    build: Callable[[nnx.Rngs], Module], folder: Path
) -> tuple[nnx.GraphDef[Module], dict[str, tuple[tuple, nnx.Variable]]]:
    """Structure of `build(rngs)`, and path and variable of each parameter's name.

    Raises ValueError naming all tensors of the checkpoint that are missing, unexpected
    or of the wrong shape; reads no tensor.
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    flat = nnx.to_flat_state(abstract)
    name_to_place = {_joined(path): (path, variable) for path, variable in flat}
    shapes = {name: tuple(leaf.shape) for name, (_, leaf) in name_to_place.items()}
    _check_tensors(shapes, _stored_shapes(folder), folder)
    return graph, name_to_place


def save_params(params: nnx.State, folder: Path, dtype: DTypeLike) -> None:
    """Writes `model.safetensors` with the names that files on the Hub have."""
    flat = {
        _stored_name(_joined(path)): np.asarray(leaf[...], dtype)
        for path, leaf in nnx.to_flat_state(params)
    }
    folder.mkdir(parents=True, exist_ok=True)
    # transformers refuses a file without this mark.
    metadata = {"format": "pt"}
    safetensors.numpy.save_file(flat, folder / SINGLE_FILE, metadata=metadata)


def parameter_name(stored: str) -> str | None:
    """The path of a tensor in any release's file; None for one to leave out."""
    if _IGNORED.fullmatch(stored):
        return None
    name = stored.removeprefix("model.")
    for prefix, replacement in _PREFIXES.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return _MLP_OF_TIPSV2.sub(lambda m: f"{m[1]}.{_FC_OF_TIPSV2[m[2]]}.", name)


def _joined(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))


def _stored_name(parameter: str) -> str:
    for prefix, replacement in _PREFIXES.items():
        if parameter.startswith(replacement):
            return prefix + parameter.removeprefix(replacement)
    return parameter


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    return {entry.name: entry.shape for entry in _entries(folder)}


def _stored_tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Large tensors first, each through a map of its own.

    So the host's peak is one model, whatever the last tensors are: a map keeps the
    pages that were read through it, and a tensor is there twice while it is placed.
    """
    for entry in sorted(_entries(folder), key=lambda e: -math.prod(e.shape)):
        with _opened(entry.file) as file:
            yield entry.name, file.get_tensor(entry.stored_name)


class _Entry(NamedTuple):
    """One tensor in a file, and the path of its parameter."""

    file: Path
    stored_name: str
    name: str
    shape: tuple[int, ...]


def _entries(folder: Path) -> Iterator[_Entry]:
    for path in weight_files(folder):
        with _opened(path) as file:
            for stored in file.keys():  # noqa: SIM118 (it is no mapping)
                if (name := parameter_name(stored)) is not None:
                    shape = tuple(file.get_slice(stored).get_shape())
                    yield _Entry(path, stored, name, shape)


def _opened(path: Path) -> safetensors.safe_open:
    try:
        return safetensors.safe_open(path, "numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path}: expected a whole safetensors file ({error})"
        ) from error


def _check_tensors(
    expected: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, tuple[int, ...]],
    folder: Path,
) -> None:
    problems = [
        *(f"missing {name}" for name in expected if name not in stored),
        *(f"unexpected {name}" for name in stored if name not in expected),
        *(
            f"{name} has shape {stored[name]}, expected {shape}"
            for name, shape in expected.items()
            if name in stored and stored[name] != shape
        ),
    ]
    if problems:
        shown = "; ".join(problems[:8]) + ("; ..." if len(problems) > 8 else "")
        raise ValueError(
            f"checkpoint={str(folder)!r}: expected the tensors of its config.json, "
            f"but {len(problems)} differ: {shown}"
        )
