"""How a checkpoint's images are prepared, according to its files.

In: a folder. Out: a resize to a square and a linear map of its values. A field that is
missing has the value that transformers assumes; one that cannot be done so is refused.
Nothing here needs JAX.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from PIL import Image

from recipes.json_file import read_object

ALONE, MERGED = "preprocessor_config.json", "processor_config.json"

_EVERYWHERE: Mapping[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_center_crop": False,
    "crop_size": None,
    "do_pad": False,
    "pad_size": None,
    "image_mean": None,
    "image_std": None,
}
# What the classes of transformers assume.
_CLASS_TO_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "SiglipImageProcessor": {
        "size": 224,
        "resample": Image.Resampling.BICUBIC,
        "do_normalize": True,
        "image_mean": 0.5,
        "image_std": 0.5,
    },
    "Tipsv2ImageProcessor": {
        "size": 448,
        "resample": Image.Resampling.BILINEAR,
        "do_normalize": False,
    },
}
_MODEL_TYPE_TO_CLASS = {"tipsv2": "Tipsv2ImageProcessor"}  # the others are SigLIP's


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """Squeezed to a square; then `(value / divisor - mean) / std` of each channel."""

    size_px: int
    resampling: Image.Resampling
    divisor: float = 255.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @classmethod
    def read(cls, folder: Path, model_type: str | None = None) -> Self | None:
        """None without a file.

        `model_type` says whose defaults hold where the file does not name its class.
        Raises ValueError, which names the field, for what cannot be done so.
        """
        found = _settings(folder)
        if found is None:
            return None
        path, settings = found
        try:
            return cls._of(_with_defaults(settings, model_type))
        except ValueError as error:
            raise ValueError(f"{path}: preprocessor {error}") from error

    @classmethod
    def _of(cls, settings: Mapping[str, Any]) -> Self:
        size_px = _square("size", settings["size"])
        for step in ("do_resize", "do_rescale"):
            _expect(_flag(step, settings[step]), f"{step}=false", "true")
        for step, name in (("do_center_crop", "crop_size"), ("do_pad", "pad_size")):
            if _flag(step, settings[step]) and settings[name] is not None:
                is_same = _square(name, settings[name]) == size_px
                value = _shown(settings[name])
                _expect(
                    is_same, f"{name}={value}", f"the size, {size_px}, or no {step}"
                )
        factor = settings["rescale_factor"]
        is_scale = _is_number(factor) and factor > 0
        _expect(is_scale, f"rescale_factor={_shown(factor)}", "a positive number")
        resampling = _resampling(settings["resample"])
        if not _flag("do_normalize", settings["do_normalize"]):
            return cls(size_px, resampling, 1 / factor)
        mean, std = (_channels(x, settings[x]) for x in ("image_mean", "image_std"))
        _expect(all(std), f"image_std={_shown(std)}", "no zeros")
        return cls(size_px, resampling, 1 / factor, mean, std)


def _settings(folder: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """Settings; the file of the whole processor comes first, as in transformers."""
    merged, alone = folder / MERGED, folder / ALONE
    if merged.exists() and "image_processor" in (whole := read_object(merged)):
        return merged, whole["image_processor"]
    return (alone, read_object(alone)) if alone.exists() else None


def _with_defaults(settings: Any, model_type: str | None) -> Mapping[str, Any]:
    _expect(isinstance(settings, dict), f"{_shown(settings)}", "a JSON object")
    usual = _MODEL_TYPE_TO_CLASS.get(model_type or "", "SiglipImageProcessor")
    older = settings.get("feature_extractor_type") or usual
    name = str(settings.get("image_processor_type") or older)
    known = name.removesuffix("Fast").removesuffix("Pil")
    known = known.replace("FeatureExtractor", "ImageProcessor")
    choices = " or ".join(_CLASS_TO_DEFAULTS)
    _expect(known in _CLASS_TO_DEFAULTS, f"image_processor_type={name!r:.60}", choices)
    return {**_EVERYWHERE, **_CLASS_TO_DEFAULTS[known], **settings}


def _square(name: str, value: Any) -> int:
    """The side of what transformers takes for a size; a number is a square."""
    sides = [value]
    if isinstance(value, list):
        sides = value
    elif isinstance(value, dict):
        known = {side: x for side, x in value.items() if x is not None}
        sides = [*known.values()] if known.keys() == {"height", "width"} else []
    is_square = len(sides) in (1, 2) and sides[0] == sides[-1]
    is_square = is_square and type(sides[0]) is int and sides[0] > 0
    _expect(is_square, f"{name}={_shown(value)}", "a square, one size in pixels")
    return sides[0]


def _flag(name: str, value: Any) -> bool:
    """Nothing counts as false, as in transformers."""
    is_flag = value is None or isinstance(value, bool)
    _expect(is_flag, f"{name}={_shown(value)}", "true or false")
    return bool(value)


def _resampling(value: Any) -> Image.Resampling:
    numbers = [int(filter_) for filter_ in Image.Resampling]
    is_filter = type(value) is not bool and value in numbers
    expected = f"a number of Pillow's filters, {min(numbers)} to {max(numbers)}"
    _expect(is_filter, f"resample={_shown(value)}", expected)
    return Image.Resampling(value)


def _channels(name: str, value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value] * 3
    is_right = len(values) == 3 and all(map(_is_number, values))
    _expect(is_right, f"{name}={_shown(value)}", "a number, or three")
    return tuple(map(float, values))


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]


def _expect(is_right: bool, found: str, expected: str) -> None:
    if not is_right:
        raise ValueError(f"{found}: expected {expected}")
