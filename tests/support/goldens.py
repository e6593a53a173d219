"""Answers of Hugging Face's PaliGemma in PyTorch: ours must be the same tokens.

`tests/support/goldens/paligemma.json` holds, for each checkpoint and question below,
32 tokens for each of 8 images. `python -m tests.system.parity.write_goldens` makes it
anew (it needs the [torch] extra), and the parity tests compare it with PyTorch itself.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from pipeline.models.paligemma import GREEDY, Sampling
from tests.support import tiny_checkpoints

FILE = Path(__file__).parent / "goldens/paligemma.json"
N_NEW_TOKENS = 32
IMAGES = tiny_checkpoints.random_images(8)
FAMILIES = ("gemma", "gemma2")
RNG_SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Question:
    """One prompt an image, and how to sample the answers."""

    name: str
    prompts: tuple[str, ...]
    n_samples: int = 1
    sampling: Sampling = GREEDY

    @property
    def keys(self) -> np.ndarray:
        """uint32 `[n_images, n_samples, 2]`"""
        shape = (len(IMAGES), self.n_samples, 2)
        return np.random.default_rng(5).integers(0, 1 << 32, shape, np.uint32)


PROMPTS = ("caption en", "describe en", "two red circles on a blue table")
MIXED = tuple(PROMPTS[i % 3] for i in range(8))
QUESTIONS = (
    *(Question(prompt, (prompt,) * 8) for prompt in PROMPTS),
    Question("mixed", MIXED),
    Question("sampled", MIXED, n_samples=3, sampling=Sampling(1.3, 0.8)),
)


def read() -> dict[str, dict[str, list[list[int]]]]:
    """Checkpoint to question to token ids, `n_images * n_samples` rows."""
    return json.loads(FILE.read_text())


def checkpoint_name(family: str, rng_seed: int) -> str:
    return f"{family}-{rng_seed}"
