"""Writes exports of small random TIPS models, as the trainer exports them."""

import functools
from pathlib import Path

import jax
import numpy as np

from trainer.config import FeedForward, ModelConfig, TextConfig, VisionConfig
from trainer.exchange import exported_weights, formats, hugging_face
from trainer.exchange.exported_weights import ExportedWeights
from trainer.models import two_tower
from trainer.tokenizer import train_vocabulary

SIZES = {"width": 24, "n_heads": 3, "mlp_dim": 40, "n_layers": 1}
TEXTS = ["a red circle", "TWO green triangles", "a blue square and a red circle " * 9]
N_TOKENS = 12


@functools.cache
def vocabulary() -> bytes:
    words = " ".join(TEXTS).lower().split()
    return train_vocabulary([" ".join(words)] * 3, 40)


def model_of(feed_forward: FeedForward, size_px: int) -> ExportedWeights:
    """Random everywhere, so that no array could take another's place."""
    model = ModelConfig(
        vision=VisionConfig(
            **SIZES, feed_forward=feed_forward, position_grid=(3, 3), patch_size_px=7
        ),
        text=TextConfig(**SIZES, vocabulary_size=40, max_tokens=N_TOKENS),
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32),
        two_tower.init_params(model, 0),
    )
    return exported_weights.from_params(params, model, size_px, step=1)


def write(folder: Path, model: ExportedWeights, gelu: str = "tanh") -> Path:
    folder.mkdir()
    (folder.parent / "vocabulary.model").write_bytes(vocabulary())
    hugging_face.write(model, folder, gelu=gelu)
    path, n_tokens = folder.parent / "vocabulary.model", model.model.text.max_tokens
    formats.write_tokenizer(path, formats.Format.HF, folder, n_tokens)
    return folder
