"""The JSON files of a `tipsv2` folder, written and read."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from recipes.validation import require
from trainer.config import FeedForward, ModelConfig, TextConfig, VisionConfig
from trainer.exchange.exported_weights import ExportedWeights
from trainer.models.layers import LAYER_NORM_EPSILON

# transformers' names of both forms of GELU. Models are trained with the first; released
# folders name the second.
GELUS = {"tanh": "gelu_pytorch_tanh", "exact": "gelu"}
_BILINEAR = 2  # Pillow's number of the filter
# Fields of a preprocessor that do not change its output.
_NOT_OF_PIXELS = ("image_processor_type", "processor_class", "do_convert_rgb", "size")

# The defaults of transformers: the sizes of B/14.
_VISION_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "image_size": 448,
    "patch_size": 14,
    "num_register_tokens": 1,
    "use_swiglu_ffn": False,
}
_TEXT_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "hidden_act": "relu",
}
_TEMPERATURE = 0.005065968260169029


class ModelDescription(NamedTuple):
    """The contents of a `config.json`."""

    model: ModelConfig
    temperature: float
    step: int


def model_json(model: ExportedWeights, gelu: str) -> dict[str, Any]:
    """Returns `config.json`; `gelu` is a key of `GELUS`."""
    vision, text = model.model.vision, model.model.text
    return {
        "architectures": ["Tipsv2Model"],
        "dtype": "float32",
        "model_type": "tipsv2",
        "temperature_init_value": float(model.temperature),
        "text_config": {
            "model_type": "tipsv2_text_model",
            "vocab_size": text.vocabulary_size,
            "hidden_size": text.width,
            "intermediate_size": text.mlp_dim,
            "num_hidden_layers": text.n_layers,
            "num_attention_heads": text.n_heads,
            "max_position_embeddings": text.max_tokens,
            "hidden_act": "relu",
            # Released folders say 1e-5, with which their models were not trained.
            "layer_norm_eps": LAYER_NORM_EPSILON,
            "pad_token_id": 0,
        },
        "training_step": model.step,
        "vision_config": {
            "model_type": "tipsv2_vision_model",
            "hidden_size": vision.width,
            "num_hidden_layers": vision.n_layers,
            "num_attention_heads": vision.n_heads,
            "mlp_ratio": _mlp_ratio(vision),
            "hidden_act": GELUS[gelu],
            "layer_norm_eps": LAYER_NORM_EPSILON,
            # Of the learned positions; images of other sizes have them resized.
            "image_size": vision.position_grid[0] * vision.patch_size_px,
            "patch_size": vision.patch_size_px,
            "num_register_tokens": 1,
            "use_swiglu_ffn": vision.feed_forward is FeedForward.SWIGLU,
        },
    }


def _mlp_ratio(vision: VisionConfig) -> float:
    """A factor of the width whose product is cut to the MLP's own width."""
    ratio = vision.mlp_dim / vision.width
    exact = int(vision.width * ratio) == vision.mlp_dim
    return ratio if exact else math.nextafter(ratio, math.inf)


def preprocessor_json(size_px: int) -> dict[str, Any]:
    """Returns `preprocessor_config.json`: a square of values in [0, 1]."""
    return {
        "image_processor_type": "Tipsv2ImageProcessor",
        "processor_class": "Tipsv2Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size_px, "width": size_px},
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
    }


def parse_preprocessor(values: Mapping[str, Any]) -> int:
    """Returns the side of the images; missing fields are Tipsv2ImageProcessor's.

    Raises ValueError for a preparation that is not the trainer's.
    """
    size = values.get("size", 448)
    sides = size if isinstance(size, dict) else {"height": size, "width": size}
    side: Any = sides.get("height")
    is_square = type(side) is int and side > 0 and sides.get("width") == side
    require(is_square, f"size={size!s:.80}", "a square, its size in pixels")
    for name, expected in preprocessor_json(side).items():
        found = values.get(name, expected)
        if name == "rescale_factor" and isinstance(found, float):
            is_right = math.isclose(found, expected, rel_tol=1e-6)
        else:
            is_right = found == expected or name in _NOT_OF_PIXELS
        require(is_right, f"{name}={found!s:.80}", f"{expected}, as in training")
    return side


def tokenizer_json(pad: str, unknown: str, max_tokens: int) -> dict[str, Any]:
    """Returns `tokenizer_config.json`; `pad` and `unknown` are names of tokens."""
    return {
        # Tipsv2Tokenizer leaves out what no piece covers; training has <unk> there.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "Tipsv2Processor",
        "model_input_names": ["input_ids", "attention_mask"],
        # Without this, Tipsv2Processor cuts and pads to its own 64.
        "max_length": max_tokens,
        "model_max_length": max_tokens,
        "pad_token": pad,
        "padding_side": "right",
        # "<pad>" in a text is text, not padding.
        "split_special_tokens": True,
        "unk_token": unknown,
    }


def parse_model(values: Mapping[str, Any]) -> ModelDescription:
    """Reads a `config.json`. Raises ValueError if we do not have such a model."""
    found = values.get("model_type")
    require(found == "tipsv2", f"model_type={found!r}", "'tipsv2'")
    said = values.get("quantization_config")
    require(not said, f"quantization_config={said!s:.80}", "weights of floats")
    model = ModelConfig(
        vision=_vision({**_VISION_DEFAULTS, **values.get("vision_config", {})}),
        text=_text({**_TEXT_DEFAULTS, **values.get("text_config", {})}),
    )
    temperature = float(values.get("temperature_init_value", _TEMPERATURE))
    return ModelDescription(model, temperature, int(values.get("training_step", 0)))


def _vision(values: Mapping[str, Any]) -> VisionConfig:
    act, n_registers = values["hidden_act"], values["num_register_tokens"]
    require(act in GELUS.values(), f"hidden_act={act!r}", " or ".join(GELUS.values()))
    require(n_registers == 1, f"num_register_tokens={n_registers}", "1, which is CLS 2")
    side, patch = values["image_size"], values["patch_size"]
    require(isinstance(side, int), f"image_size={side}", "one number, of a square")
    require(isinstance(patch, int), f"patch_size={patch}", "one number, of a square")
    is_swiglu = values["use_swiglu_ffn"]
    return VisionConfig(
        width=values["hidden_size"],
        n_layers=values["num_hidden_layers"],
        n_heads=values["num_attention_heads"],
        mlp_dim=int(values["hidden_size"] * values["mlp_ratio"]),
        feed_forward=FeedForward.SWIGLU if is_swiglu else FeedForward.GELU,
        position_grid=(side // patch, side // patch),
        patch_size_px=patch,
    )


def _text(values: Mapping[str, Any]) -> TextConfig:
    act = values["hidden_act"]
    require(act == "relu", f"text hidden_act={act!r}", "'relu'")
    return TextConfig(
        width=values["hidden_size"],
        n_layers=values["num_hidden_layers"],
        n_heads=values["num_attention_heads"],
        mlp_dim=values["intermediate_size"],
        vocabulary_size=values["vocab_size"],
        max_tokens=values["max_position_embeddings"],
    )
