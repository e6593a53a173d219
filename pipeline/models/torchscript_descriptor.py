"""A TorchScript file as a descriptor. Needs the extra [torch].

In: RGB images. Out: vectors. The preparation is that of SSCD's own batches: squashed
to a square, with the mean and deviation of ImageNet. A TorchScript file holds code
that runs: take it from those you trust.
"""

import dataclasses
from typing import Any, Self

import cv2
import numpy as np

from pipeline.config.duplicates import TorchDescriptor
from pipeline.models.batching import fixed_batches

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class TorchScriptImageDescriptor:
    """A loaded file on the first GPU, or on the CPU."""

    model: Any
    device: str
    dim: int
    size_px: int
    batch_size: int

    @classmethod
    def load(cls, descriptor: TorchDescriptor) -> Self:
        """Raises ValueError if the file is no TorchScript of such a model."""
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            model = torch.jit.load(descriptor.checkpoint, map_location=device).eval()
            loaded = cls(model, device, 0, descriptor.size_px, descriptor.batch_size)
            black = np.zeros((1, descriptor.size_px, descriptor.size_px, 3), np.uint8)
            shape = loaded._forward(black).shape
        except RuntimeError as error:  # all that torch says, over many lines
            reason = str(error).strip().splitlines()[-1]
            raise _error(descriptor, f"it fails: {reason}") from error
        if len(shape) != 2 or shape[0] != 1:
            raise _error(descriptor, f"it gives an array of shape {shape} for an image")
        return dataclasses.replace(loaded, dim=shape[1])

    def prepare(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 `[size_px, size_px, 3]`."""
        size_px = (self.size_px, self.size_px)
        is_smaller = max(rgb.shape[:2]) < self.size_px
        method = cv2.INTER_LINEAR if is_smaller else cv2.INTER_AREA
        return cv2.resize(rgb, size_px, interpolation=method)

    def describe(self, prepared: np.ndarray) -> np.ndarray:
        batches = fixed_batches(prepared, self.batch_size)
        vectors = np.concatenate([self._forward(batch) for batch in batches])
        return vectors[: len(prepared)]

    def _forward(self, images: np.ndarray) -> np.ndarray:
        import torch

        pixels = (images.astype(np.float32) / 255 - _MEAN) / _DEVIATION
        with torch.inference_mode():
            batch = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
            return self.model(batch.to(self.device)).float().cpu().numpy()


def _error(descriptor: TorchDescriptor, found: str) -> ValueError:
    return ValueError(
        f"checkpoint={descriptor.checkpoint!r} of descriptor {descriptor.name!r}:"
        f" expected a TorchScript file that maps images to vectors, {found}"
    )
