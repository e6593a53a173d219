"""A model as exported files hold it: two towers, one temperature, a mask token.

Arrays are keyed as in the official Scenic files: a parameter's path below its tower,
joined with "/", which is also its path in our modules.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from trainer.config import TIPS_SIZES, ContrastivePair, ModelConfig, Text, tips_model
from trainer.models import two_tower
from trainer.models.vit import resize_grid

Arrays = dict[str, Float[np.ndarray, "..."]]
Shapes = dict[str, tuple[int, ...]]

POSITIONS = "encoder/ToTokenSequence_0/posembed_input"
CLS = "encoder/ToTokenSequence_0/cls"
REGISTERS = "encoder/ToTokenSequence_0/registers"
TOWERS = ("vision", "text")
_TEMPERATURES = tuple(f"log_temperature_{text}" for text in Text)


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedWeights:
    """The contents of an export; all arrays are float32."""

    model: ModelConfig
    size_px: int  # side of the images that it is for
    step: int  # after which it was taken; 0 where a file does not say
    vision: Arrays
    text: Arrays
    temperature: Float[np.ndarray, ""]  # divides the cosines
    mask_token: Float[np.ndarray, "d"]  # zeros where it was not trained

    def params(self) -> dict:
        """Returns the tree of our modules.

        Both temperatures are the one of the export.
        """
        log_temperature = np.float32(np.log(np.float64(self.temperature)))
        return {
            "vision": traverse_util.unflatten_dict(self.vision, sep="/"),
            "text": traverse_util.unflatten_dict(self.text, sep="/"),
            **dict.fromkeys(_TEMPERATURES, log_temperature),
        }

    def with_grid(self, side: int) -> "ExportedWeights":
        """Returns the same model with learned positions for `side` x `side` patches."""
        positions = np.asarray(resize_grid(self.vision[POSITIONS], side, side))
        vision = dataclasses.replace(self.model.vision, position_grid=(side, side))
        return dataclasses.replace(
            self,
            model=dataclasses.replace(self.model, vision=vision),
            vision={**self.vision, POSITIONS: positions},
        )


def from_params(
    params: Mapping[str, Any],
    model: ModelConfig,
    size_px: int,
    step: int,
    text: Text = Text.ALT_TEXT,
) -> ExportedWeights:
    """Converts parameters of our modules; the temperature is that of a kind of text."""
    params = jax.tree.map(np.asarray, params)
    log_temperature = np.float64(params[f"log_temperature_{text}"])
    return ExportedWeights(
        model=model,
        size_px=size_px,
        step=step,
        vision=traverse_util.flatten_dict(params["vision"], sep="/"),
        text=traverse_util.flatten_dict(params["text"], sep="/"),
        temperature=np.asarray(np.exp(log_temperature), "f4"),
        mask_token=params.get("mask_token", np.zeros(model.vision.width, np.float32)),
    )


def exported_text(pairs: Sequence[ContrastivePair]) -> Text:
    """Returns the kind of text whose temperature is exported: alt texts if trained."""
    compared = [pair.text for pair in pairs]
    return Text.ALT_TEXT if Text.ALT_TEXT in compared or not pairs else compared[0]


def exported_params(shapes: dict) -> dict:
    """Returns the parameters of a model that an export needs."""
    return {
        name: shapes[name]
        for name in (*TOWERS, *_TEMPERATURES, "mask_token")
        if name in shapes
    }


def tower_shapes(model: ModelConfig) -> dict[str, Shapes]:
    """Returns, for each tower, the Scenic keys of its arrays and their shapes."""
    params = two_tower.abstract_params(model)
    flat = {
        tower: traverse_util.flatten_dict(params[tower], sep="/") for tower in TOWERS
    }
    return {
        tower: {key: tuple(leaf.shape) for key, leaf in leaves.items()}
        for tower, leaves in flat.items()
    }


def released_model(width: int, n_layers: tuple[int, int], side: int) -> ModelConfig:
    """Returns the released size of a width, with other numbers of layers.

    Official files leave the number of heads to their reader. Raises ValueError for a
    width that was not released.
    """
    sizes = {tips_model(size).vision.width: size for size in TIPS_SIZES}
    if width not in sizes:
        raise ValueError(
            f"width {width}: expected {', '.join(map(str, sizes))}, those of the"
            " released models, or the model.json of an export"
        )
    model = tips_model(sizes[width], (side, side))
    return dataclasses.replace(
        model,
        vision=dataclasses.replace(model.vision, n_layers=n_layers[0]),
        text=dataclasses.replace(model.text, n_layers=n_layers[1]),
    )


def count_blocks(keys: Iterable[str], block: str) -> int:
    """Counts how many of `block.format(0)`, `block.format(1)` ...

    are prefixes of keys.
    """
    keys = list(keys)
    numbers = itertools.takewhile(
        lambda i: any(key.startswith(block.format(i)) for key in keys),
        itertools.count(),
    )
    return sum(1 for _ in numbers)


def check_arrays(
    path: pathlib.Path, found: Mapping[str, Any], expected: Shapes
) -> None:
    """Raises ValueError unless `found` has exactly the arrays of `expected`."""
    problems = [
        *(f"{key} is missing" for key in expected if key not in found),
        *(f"{key} is not expected" for key in found if key not in expected),
        *(
            f"{key} has shape {found[key].shape}, expected {shape}"
            for key, shape in expected.items()
            if key in found and found[key].shape != shape
        ),
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{path}: {'; '.join(problems[:3])}{more}")
