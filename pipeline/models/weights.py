"""Reads and writes the weights of checkpoints in Hugging Face form.

In: a checkpoint's folder. Out: parameters in the tree of a Flax module. A parameter's
path, joined by dots, is the tensor's name, so nothing is transposed and nothing is
renamed but a few prefixes that differ between releases.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

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
# The head is tied to the token table, and position ids are no weights.
_IGNORED = re.compile(r"(.*\.)?(lm_head\.weight|position_ids)")


def load_config(folder: Path, kind: type[Config]) -> Config:
    """A checkpoint's configuration; ValueError if it is of another kind of model."""
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"checkpoint={str(folder)!r}: expected config.json in it")
    model_type = json.loads(path.read_text()).get("model_type")
    if model_type != kind.model_type:
        raise ValueError(
            f"checkpoint={str(folder)!r} has model_type={model_type!r}: "
            f"expected {kind.model_type!r}"
        )
    return kind.from_pretrained(folder)


def load_module(
    build: Callable[[nnx.Rngs], Module], folder: Path, dtype: DTypeLike
) -> tuple[nnx.GraphDef[Module], nnx.State]:
    """Structure and parameters of `build(rngs)`, with the weights of a checkpoint.

    `build` is only traced: no random weights are made. Tensors are read from the
    memory-mapped files one at a time and cast to `dtype`. Raises ValueError naming all
    tensors that are missing, unexpected or of the wrong shape.
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    flat = nnx.to_flat_state(abstract)
    name_to_place = {_joined(path): (path, variable) for path, variable in flat}
    shapes = {name: tuple(leaf.shape) for name, (_, leaf) in name_to_place.items()}
    _check_tensors(shapes, dict(_stored_shapes(folder)), folder)
    loaded = []
    for name, tensor in _stored_tensors(folder, dtype):
        path, variable = name_to_place[name]
        loaded.append((path, variable.replace(tensor)))
    return graph, nnx.from_flat_state(loaded)


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
    return name


def _joined(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))


def _stored_name(parameter: str) -> str:
    for prefix, replacement in _PREFIXES.items():
        if parameter.startswith(replacement):
            return prefix + parameter.removeprefix(replacement)
    return parameter


def _stored_shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    for file, stored, name in _entries(folder):
        yield name, tuple(file.get_slice(stored).get_shape())


def _stored_tensors(folder: Path, dtype: DTypeLike) -> Iterator[tuple[str, jax.Array]]:
    for file, stored, name in _entries(folder):
        yield name, jnp.asarray(file.get_tensor(stored), dtype)


def _entries(folder: Path) -> Iterator[tuple[safetensors.safe_open, str, str]]:
    """Every tensor's open file, its name there, and the path of its parameter."""
    for path in weight_files(folder):
        with _opened(path) as file:
            for stored in file.keys():  # noqa: SIM118 (it is no mapping)
                if (name := parameter_name(stored)) is not None:
                    yield file, stored, name


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
