"""The frozen encoder of the score stage as a Beam model handler.

In: batches of readable pairs. Out: an image embedding and an alignment score per pair.
"""

import dataclasses
import math
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import numpy as np
from apache_beam.ml.inference.base import ModelHandler

from pipeline.config.curation import EncoderConfig
from pipeline.models.interfaces import Encoder


@dataclasses.dataclass(frozen=True)
class PreparedPair:
    """A readable pair, prepared for an encoder."""

    pixels: np.ndarray  # uint8 [s, s, 3]
    alt_text: str  # may be empty


@dataclasses.dataclass(frozen=True)
class Embedded:
    """The image embedding and the alignment score of one pair."""

    embedding: np.ndarray  # of the image: float32 [d], of length 1
    alignment_score: float  # cosine of image and alt text; NaN without alt text


class EncoderHandler(ModelHandler[PreparedPair, Embedded, Encoder]):
    """The encoder of a configuration."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(max_batch_size=config.batch_size)
        self.config = config

    def load_model(self) -> Encoder:
        from pipeline.models import encoders  # JAX takes seconds

        return encoders.load_encoder(self.config)

    def run_inference(
        self,
        batch: Sequence[PreparedPair],
        model: Encoder,
        inference_args: dict[str, Any] | None = None,
    ) -> list[Embedded]:
        """Embeds all images, and the alt texts that are not empty, side by side.

        The two towers are also compiled side by side.
        """
        rows = [row for row, pair in enumerate(batch) if pair.alt_text]
        texts = [batch[row].alt_text for row in rows]
        with futures.ThreadPoolExecutor(1) as beside:
            encoded_texts = beside.submit(model.encode_texts, texts) if texts else None
            embeddings = model.encode_images(np.stack([p.pixels for p in batch]))
        scores = np.full(len(batch), math.nan)
        if encoded_texts:
            scores[rows] = (embeddings[rows] * encoded_texts.result()).sum(axis=1)
        return [Embedded(*row) for row in zip(embeddings, scores.tolist(), strict=True)]
