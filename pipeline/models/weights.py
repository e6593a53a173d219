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
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from pipeline.models.checkpoints import FLOATS, SINGLE_FILE, weight_files
from pipeline.models.checkpoints import resolve_checkpoint as resolve_checkpoint
from pipeline.models.checkpoints import weights_digest as weights_digest
from recipes.json_file import read_object

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
# Position ids are no weights. Of tipsv2 what training alone needs.
_IGNORED = re.compile(r"(.*\.)?position_ids|vision_encoder\.mask_token|temperature")
_ANY_HEAD = re.compile(r"(.*\.)?lm_head\.weight")
_TABLE, _HEAD = "language_model.embed_tokens.weight", "language_model.lm_head.weight"
_ROWS_A_PART = 1 << 14  # of a token table, some 100 MB


def model_type_of(folder: Path) -> str | None:
    """The `model_type` in a checkpoint's config.json; None if it has none."""
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"checkpoint={str(folder)!r}: expected config.json in it")
    return read_object(path).get("model_type")


def load_config(folder: Path, kind: type[Config]) -> Config:
    """A checkpoint's configuration; ValueError if it is of another kind of model."""
    model_type = model_type_of(folder)
    if model_type != kind.model_type:
        raise ValueError(
            f"checkpoint={str(folder)!r} has model_type={model_type!r}: "
            f"expected {kind.model_type!r}"
        )
    values = read_object(folder / "config.json")
    for part in (values, *values.values()):
        if isinstance(part, dict) and (said := part.get("quantization_config")):
            raise ValueError(
                f"checkpoint={str(folder)!r} has quantization_config="
                f"{json.dumps(said):.80}: expected weights of floats"
            )
    return kind.from_pretrained(folder)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Raises ValueError if there is no tokenizer that transformers can read."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(
            f"checkpoint={str(folder)!r}: expected a tokenizer in it ({error!s:.200})"
        ) from error


def has_own_head(folder: Path, *, is_tied: bool) -> bool:
    """Whether a decoder's output head differs from its token table.

    As in transformers: `is_tied` holds where one of the two is stored, or both are
    equal. Raises ValueError if it is False and one is missing.
    """
    name_to_entry = {entry.name: entry for entry in _entries(folder)}
    if _HEAD in name_to_entry:
        return not _are_equal(name_to_entry[_HEAD], name_to_entry[_TABLE])
    if not is_tied:
        raise ValueError(
            f"checkpoint={str(folder)!r} has tie_word_embeddings=false: expected both "
            "embed_tokens.weight and lm_head.weight"
        )
    return False


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
        if name not in name_to_place:  # a head that equals the token table
            continue
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
    name_to_place = {_join_path(path): (path, variable) for path, variable in flat}
    shapes = {name: tuple(leaf.shape) for name, (_, leaf) in name_to_place.items()}
    stored = {entry.name: entry for entry in _entries(folder)}
    if _HEAD in stored and _HEAD not in shapes:
        if not _are_equal(stored[_HEAD], stored[_TABLE]):
            raise ValueError(
                f"checkpoint={str(folder)!r}: expected no lm_head.weight, or that of "
                "the token table"
            )
        del stored[_HEAD]
    _check_tensors(
        shapes, {name: entry.shape for name, entry in stored.items()}, folder
    )
    return graph, name_to_place


def save_params(params: nnx.State, folder: Path, dtype: DTypeLike) -> None:
    """Writes `model.safetensors` with the names that files on the Hub have."""
    flat = {
        _stored_name(_join_path(path)): np.asarray(leaf[...], dtype)
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
    if _ANY_HEAD.fullmatch(stored):
        return _HEAD
    name = stored.removeprefix("model.")
    for prefix, replacement in _PREFIXES.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return _MLP_OF_TIPSV2.sub(lambda m: f"{m[1]}.{_FC_OF_TIPSV2[m[2]]}.", name)


def _join_path(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))


def _stored_name(parameter: str) -> str:
    for prefix, replacement in _PREFIXES.items():
        if parameter.startswith(replacement):
            return prefix + parameter.removeprefix(replacement)
    return parameter


def _stored_tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Large tensors first, each through a map of its own.

    So the host's peak is one model, whatever the last tensors are: a map keeps the
    pages that were read through it, and a tensor is there twice while it is placed.
    """
    for entry in sorted(_entries(folder), key=lambda e: -math.prod(e.shape)):
        with _open(entry.file) as file:
            yield entry.name, file.get_tensor(entry.stored_name)


class _Entry(NamedTuple):
    """One tensor in a file, and the path of its parameter."""

    file: Path
    stored_name: str
    name: str
    shape: tuple[int, ...]


def _entries(folder: Path) -> list[_Entry]:
    """All parameters; a head that is stored alone is the token table.

    Raises ValueError if one is not of floats.
    """
    found = [entry for path in weight_files(folder) for entry in _entries_of(path)]
    if any(entry.name == _TABLE for entry in found):
        return found
    return [
        entry._replace(name=_TABLE) if entry.name == _HEAD else entry for entry in found
    ]


def _entries_of(path: Path) -> Iterator[_Entry]:
    with _open(path) as file:
        for stored in file.keys():  # noqa: SIM118 (it is no mapping)
            if (name := parameter_name(stored)) is not None:
                part = file.get_slice(stored)
                if part.get_dtype() not in FLOATS:
                    raise ValueError(
                        f"{path}: {stored} is {part.get_dtype()}: expected floats, "
                        f"{', '.join(FLOATS)}"
                    )
                yield _Entry(path, stored, name, tuple(part.get_shape()))


def _are_equal(one: _Entry, other: _Entry) -> bool:
    """Whether two tensors have the same values; reads them part by part."""
    if one.shape != other.shape:
        return False
    n_rows = one.shape[0]
    with _open(one.file) as first, _open(other.file) as second:
        pair = (first.get_slice(one.stored_name), second.get_slice(other.stored_name))
        parts = (
            slice(start, min(start + _ROWS_A_PART, n_rows))
            for start in range(0, n_rows, _ROWS_A_PART)
        )
        return all(np.array_equal(pair[0][part], pair[1][part]) for part in parts)


def _open(path: Path) -> safetensors.safe_open:
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
