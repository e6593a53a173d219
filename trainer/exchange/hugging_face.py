"""A folder of Hugging Face's `tipsv2`, which `AutoModel` of transformers loads.

Weights have the names of the released folders: those of the PyTorch files after
`vision_encoder.` and `text_encoder.`. The temperature is a field of the configuration.
The tokenizer is stored twice: the sentencepiece model itself, and `tokenizer.json`.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from recipes.validation import require
from trainer.config import VisionConfig
from trainer.exchange import hugging_face_config, tokenizer_json, torch_names
from trainer.exchange.exported_weights import (
    Arrays,
    ExportedWeights,
    check_arrays,
    tower_shapes,
)
from trainer.exchange.sentencepiece_file import SentencePieceFile

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
_PROCESSOR = "processor_config.json"  # newer releases put everything there
_FLOATS = ("F64", "F32", "F16", "BF16")
_INDEX = "model.safetensors.index.json"
_VISION, _TEXT = "vision_encoder.", "text_encoder."
# transformers saves the image encoder's MLP with the text encoder's names.
_ALIASES = {".mlp.c_fc.": ".mlp.fc1.", ".mlp.c_proj.": ".mlp.fc2."}


def write(model: ExportedWeights, folder: pathlib.Path, *, gelu: str = "tanh") -> None:
    """Writes weights and configuration; `model` has as many rows of positions as
    columns.

    `gelu` is the form that transformers computes with; see `hugging_face_config.GELUS`.
    """
    vision, text = model.model.vision, model.model.text
    towers = {
        _VISION: torch_names.vision_to_torch(model.vision, model.mask_token, vision),
        _TEXT: torch_names.text_to_torch(model.text, text),
    }
    arrays = {
        name: np.asarray(array, np.float32, order="C")
        for name, array in _add_prefixes(towers).items()
    }
    # transformers refuses a file without this mark.
    metadata = {"format": "pt"}
    safetensors.numpy.save_file(arrays, folder / WEIGHTS, metadata=metadata)
    _write_json(folder / CONFIG, hugging_face_config.model_json(model, gelu))
    preparation = hugging_face_config.preprocessor_json(model.size_px)
    _write_json(folder / PREPROCESSOR, preparation)


def write_tokenizer(path: pathlib.Path, folder: pathlib.Path, max_tokens: int) -> None:
    """Writes the tokenizer's files. Raises ValueError as `convert_tokenizer` does."""
    (folder / "tokenizer.json").write_text(tokenizer_json.convert_tokenizer(path))
    pad, unknown = (piece.text for piece in SentencePieceFile.read(path).pieces[:2])
    config = hugging_face_config.tokenizer_json(pad, unknown, max_tokens)
    _write_json(folder / "tokenizer_config.json", config)


def is_folder(path: pathlib.Path) -> bool:
    """Whether it has the config.json of a model; a workdir has another kind."""
    try:
        config = json.loads((path / CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config


def read(path: pathlib.Path) -> ExportedWeights:
    """Reads a folder.

    Raises ValueError if it is of another kind or a part is missing.
    """
    try:
        values = json.loads((path / CONFIG).read_text())
        described = hugging_face_config.parse_model(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path / CONFIG}: {error}") from error
    vision, text = described.model.vision, described.model.text
    arrays = _load(path)
    temperature = arrays.pop("temperature", np.float32(described.temperature))
    shapes = tower_shapes(described.model)
    expected_vision = torch_names.vision_shapes(vision, shapes["vision"])
    expected_text = torch_names.text_shapes(text, shapes["text"])
    expected = _add_prefixes({_VISION: expected_vision, _TEXT: expected_text})
    check_arrays(path, arrays, expected)
    scenic, mask_token = torch_names.vision_from_torch(
        _strip_prefix(arrays, _VISION), vision, shapes["vision"]
    )
    return ExportedWeights(
        model=described.model,
        size_px=_size_px(path, vision),
        step=described.step,
        vision=scenic,
        text=torch_names.text_from_torch(
            _strip_prefix(arrays, _TEXT), text, shapes["text"]
        ),
        temperature=np.asarray(temperature).reshape(()),
        mask_token=mask_token,
    )


def _size_px(path: pathlib.Path, vision: VisionConfig) -> int:
    """The size that the preprocessor makes; without one, the size of the positions."""
    for file in (path / _PROCESSOR, path / PREPROCESSOR):
        if not file.exists():
            continue
        try:
            values = json.loads(file.read_text())
            if file.name == _PROCESSOR:
                values = values.get("image_processor")
            if values is not None:
                return hugging_face_config.parse_preprocessor(values)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: {error}") from error
    return vision.position_grid[0] * vision.patch_size_px


def _load(path: pathlib.Path) -> Arrays:
    """The tensors of one file, or of all that the index names."""
    index = path / _INDEX
    try:
        names = {WEIGHTS}
        if index.exists():
            names = set(json.loads(index.read_text())["weight_map"].values())
        arrays: Arrays = {}
        for name in sorted(names):
            arrays |= _load_file(path / name)
    except OSError as error:
        raise ValueError(f"{path}: {error}; expected {WEIGHTS}") from error
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: {error}; expected whole safetensors") from error
    return {_usual_name(name): x.astype(np.float32) for name, x in arrays.items()}


def _load_file(path: pathlib.Path) -> Arrays:
    with safetensors.safe_open(path, "numpy") as file:
        for name in file.keys():  # noqa: SIM118 (it is no mapping)
            kind = file.get_slice(name).get_dtype()
            require(kind in _FLOATS, f"{path}: {name} is {kind}", "floats")
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _add_prefixes(towers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The inverse of `_below`, of both prefixes."""
    return {
        prefix + name: value
        for prefix, tower in towers.items()
        for name, value in tower.items()
    }


def _strip_prefix(arrays: Arrays, prefix: str) -> Arrays:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _usual_name(name: str) -> str:
    if name.startswith(_VISION):
        for alias, usual in _ALIASES.items():
            name = name.replace(alias, usual)
    return name


def _write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
