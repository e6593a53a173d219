"""A captioner of your own, and a recipe that uses it.

    python -m pipeline.run curate --config examples/captioner.py --output RUN \
        --input 'CRAWL/*.tar'

A captioner is a class with the methods of `pipeline.models.interfaces.Captioner` and a
class method `load`. A granularity names it `MODULE:CLASS`. That name, `checkpoint` and
`revision` are part of what names the captions: give another revision to a class that
writes other captions, and only then are images captioned again.
"""

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np

from curation_configs import demo
from pipeline.config.captions import Granularity
from pipeline.config.curation import CurationConfig
from pipeline.config.selection import SelectionConfig
from pipeline.models.interfaces import Caption
from pipeline.records import FinishReason


@dataclasses.dataclass(frozen=True, eq=False)
class Brightness:
    """Says how bright an image is."""

    batch_size: int
    threshold: float  # mean of the pixels of a bright image, 0 to 255

    @classmethod
    def load(cls, granularity: Granularity) -> Self:
        """Called once per worker. The meaning of `checkpoint` is the class's own."""
        return cls(granularity.batch_size, float(granularity.checkpoint))

    @classmethod
    def check(cls, granularity: Granularity) -> None:
        """Called before a run; raises ValueError, with one line for the user."""
        if not granularity.checkpoint.isdecimal():
            found = f"checkpoint={granularity.checkpoint!r}"
            raise ValueError(f"{found}: expected the brightness of a bright image")

    def prepare_image(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] to what `encode` takes of one image; runs on all cores."""
        return rgb

    def encode(self, images: Sequence[np.ndarray]) -> list[float]:
        """Features of a batch, made once for all granularities of a checkpoint."""
        return [float(image.mean()) for image in images]

    def caption(
        self,
        features: Sequence[float],
        prompts: Sequence[str],
        granularity: Granularity,
        keys: np.ndarray,
    ) -> list[tuple[Caption, ...]]:
        """For each image its captions. `keys` are the only source of randomness.

        A ValueError costs the captions that raise it: they become rows with the error.
        """
        n_samples = keys.shape[1]
        return [(self._describe(mean),) * n_samples for mean in features]

    def _describe(self, mean: float) -> Caption:
        text = "a bright image" if mean > self.threshold else "a dark image"
        return Caption(text, len(text.split()), FinishReason.STOP, mean_logprob=0.0)


def get_config() -> CurationConfig:
    """The demo's encoder, no drop rule, and captions by `Brightness` alone."""
    brightness = Granularity(
        "brightness", checkpoint="127", captioner="examples.captioner:Brightness"
    )
    return dataclasses.replace(
        demo.get_config(), selection=SelectionConfig(), granularities=(brightness,)
    )
