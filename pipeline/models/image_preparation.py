"""From a decoded image to what a checkpoint's vision tower was trained on.

In: RGB pixels of any size. Out: a uint8 square for the host to batch, and on the device
the normalized floats. Both follow the checkpoint's preprocessor configuration; the
resized bytes equal those of Hugging Face's PIL image processor.
"""

import dataclasses
from pathlib import Path
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from transformers import SiglipVisionConfig

from pipeline.models.preprocessor import ALONE, MERGED, Preprocessor


@dataclasses.dataclass(frozen=True)
class ImagePreparation(Preprocessor):
    """Resize to a square without keeping the aspect ratio, then scale and normalize."""

    @classmethod
    def load(
        cls, folder: Path, resampling: str = "", model_type: str | None = None
    ) -> Self:
        """Reads a checkpoint's preprocessor file; ValueError if it is unusual.

        `resampling` is Pillow's name of a filter, in place of the checkpoint's.
        """
        found = cls.read(folder, model_type)
        if found is None:
            raise ValueError(
                f"checkpoint={str(folder)!r}: expected {ALONE} or {MERGED}"
            )
        if not resampling:
            return found
        return dataclasses.replace(
            found, resampling=Image.Resampling[resampling.upper()]
        )

    def check_model(self, config: SiglipVisionConfig) -> None:
        """Raises ValueError unless the vision tower takes images of this size."""
        if self.size_px != config.image_size:
            raise ValueError(
                f"preprocessor size={self.size_px}: expected the vision tower's "
                f"image_size {config.image_size}"
            )

    def resize(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 `[h, w, 3]` to uint8 `[size_px, size_px, 3]`, antialiased."""
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
            raise ValueError(
                f"image is {rgb.dtype} {rgb.shape}: expected uint8 [height, width, 3]"
            )
        square = (self.size_px, self.size_px)
        return np.asarray(Image.fromarray(rgb).resize(square, self.resampling))

    def normalize(self, images: jax.Array) -> jax.Array:
        """uint8 `[b, s, s, 3]` to float32, as the vision tower expects."""
        scaled = images.astype(jnp.float32) / self.divisor
        return (scaled - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def check_batch(self, images: np.ndarray) -> None:
        """Raises ValueError unless `images` is a stack of resized images."""
        expected = (self.size_px, self.size_px, 3)
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise ValueError(
                f"images are {images.dtype} {images.shape}: expected uint8 [n, "
                f"{self.size_px}, {self.size_px}, 3]"
            )
