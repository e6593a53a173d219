"""The official pairs of files, Scenic's and PyTorch's: `*_vision.npz`, `*_text.npz`.

Both towers are in one folder, with the tokenizer. Exports add `model.json`: the sizes,
which the files alone do not give in full. Without it, the model must be one of the
released sizes.
"""

import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from recipes.validation import require
from trainer.config import ModelConfig, TextConfig, VisionConfig
from trainer.config_files import from_dict, plain
from trainer.exchange import torch_names
from trainer.exchange.exported_weights import (
    POSITIONS,
    Arrays,
    ExportedWeights,
    check_arrays,
    count_blocks,
    released_model,
    tower_shapes,
)

VISION, TEXT, MODEL = "_vision.npz", "_text.npz", "model.json"
_NAME = "tips"  # exports are tips_vision.npz, tips_text.npz
# The scripts of the authors look for these names.
_TEMPERATURE_NAMES = (
    "temperature_contrastive",
    "contrastive_loss_temperature",
    "temperature",
)


def write_scenic(model: ExportedWeights, folder: pathlib.Path) -> None:
    """Writes the pair for JAX."""
    temperature = {"temperature_contrastive": model.temperature}
    _write(model, folder, model.vision, model.text | temperature)


def write_pytorch(model: ExportedWeights, folder: pathlib.Path) -> None:
    """Writes the pair for PyTorch; `model` has as many rows of positions as columns."""
    vision, text = model.model.vision, model.model.text
    _write(
        model,
        folder,
        torch_names.vision_to_torch(model.vision, model.mask_token, vision),
        torch_names.text_to_torch(model.text, text)
        | {"temperature": model.temperature},
    )


def is_pair(path: pathlib.Path) -> bool:
    """Whether it is, or holds, the file of a vision tower."""
    return path.name.endswith(VISION) or any(path.glob(f"*{VISION}"))


def read(path: pathlib.Path) -> ExportedWeights:
    """Reads either pair, from its folder or `NAME_vision.npz`.

    Raises ValueError if a file is missing, broken, or of no model that we know.
    """
    file = _vision_file(path)
    vision = load(file)
    text_file = file.with_name(file.name.removesuffix(VISION) + TEXT)
    text = load(text_file)
    temperature = _temperature(text, text_file)
    model, size_px, step = _describe(file, vision, text)
    shapes = tower_shapes(model)
    mask_token = np.zeros(model.vision.width, np.float32)
    if POSITIONS in vision:
        check_arrays(file, vision, shapes["vision"])
        check_arrays(text_file, text, shapes["text"])
    else:
        check_arrays(
            file, vision, torch_names.vision_shapes(model.vision, shapes["vision"])
        )
        check_arrays(
            text_file, text, torch_names.text_shapes(model.text, shapes["text"])
        )
        vision, mask_token = torch_names.vision_from_torch(
            vision, model.vision, shapes["vision"]
        )
        text = torch_names.text_from_torch(text, model.text, shapes["text"])
    return ExportedWeights(model, size_px, step, vision, text, temperature, mask_token)


def _write(
    model: ExportedWeights, folder: pathlib.Path, vision: Arrays, text: Arrays
) -> None:
    for suffix, arrays in ((VISION, vision), (TEXT, text)):
        named: dict[str, Any] = {
            key: np.asarray(x, np.float32, order="C")
            for key, x in sorted(arrays.items())
        }
        np.savez(folder / f"{_NAME}{suffix}", **named)
    described = {
        "image_size_px": model.size_px,
        "step": model.step,
        "vision": plain(model.model.vision),
        "text": plain(model.model.text),
    }
    (folder / MODEL).write_text(json.dumps(described, indent=2) + "\n")


def _vision_file(path: pathlib.Path) -> pathlib.Path:
    if path.name.endswith(VISION):
        return path
    found = sorted(path.glob(f"*{VISION}"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{path}: expected one *{VISION}, or one of {names} by name")
    return found[0]


def load(file: pathlib.Path, what: str = "a tower") -> Arrays:
    """Reads all arrays of a file, as float32. Raises ValueError if it is broken."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {key: _floats(key, stored[key]) for key in stored.files}
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}, expected {what}") from error
    except (ValueError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"{file}: {error}; expected a whole .npz") from error


def _floats(key: str, array: np.ndarray) -> Float[np.ndarray, "..."]:
    is_float = array.dtype.name in ("float64", "float32", "float16", "bfloat16")
    require(is_float, f"{key} is {array.dtype}", "floats")
    return array.astype(np.float32)


def _temperature(text: Arrays, file: pathlib.Path) -> Any:
    """Takes the temperature out of the text tower's arrays."""
    found = [text.pop(name) for name in _TEMPERATURE_NAMES if name in text]
    if len(found) != 1 or found[0].size != 1 or not found[0].reshape(()) > 0:
        names = " or ".join(_TEMPERATURE_NAMES)
        raise ValueError(f"{file}: expected one positive number, {names}")
    return found[0].reshape(())


def _describe(
    file: pathlib.Path, vision: Arrays, text: Arrays
) -> tuple[ModelConfig, int, int]:
    """The model, the size of its images and the step, by `model.json` or shapes."""
    path = file.with_name(MODEL)
    if path.exists():
        try:
            return _parse_description(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: {error!r}; expected what an export writes"
            ) from error
    try:
        model = _recognize_release(vision, text)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    # Files of the first TIPS keep 16 x 16 positions when they are for 448 px.
    side = 32 if "highres" in file.name else model.vision.position_grid[0]
    return model, side * model.vision.patch_size_px, 0


def _parse_description(values: Mapping[str, Any]) -> tuple[ModelConfig, int, int]:
    model = ModelConfig(
        vision=from_dict(VisionConfig, values["vision"], "vision."),
        text=from_dict(TextConfig, values["text"], "text."),
    )
    return model, int(values["image_size_px"]), int(values["step"])


def _recognize_release(vision: Arrays, text: Arrays) -> ModelConfig:
    is_scenic = POSITIONS in vision
    positions = vision.get(POSITIONS, vision.get("pos_embed"))
    if positions is None or positions.ndim < 3:
        raise ValueError(f"expected {POSITIONS} or pos_embed in it")
    n_positions = positions[0, ..., 0].size - (not is_scenic)
    names = torch_names.VISION, torch_names.TEXT
    n_vision, n_text = (
        count_blocks(arrays, name.block if is_scenic else name.torch_block)
        for arrays, name in zip((vision, text), names, strict=True)
    )
    return released_model(
        positions.shape[-1], (n_vision, n_text), round(n_positions**0.5)
    )
