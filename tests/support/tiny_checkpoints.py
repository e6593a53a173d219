"""Writes checkpoints with random weights that are small and hide no mistake.

All sizes differ, so that a mixed-up axis cannot pass; vectors are random
too, and weights are large, so that outputs differ between inputs.
"""

import functools
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from transformers import (
    GemmaTokenizer,
    PaliGemmaConfig,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
)

from pipeline.models.paligemma import PaliGemma
from pipeline.models.siglip import Siglip
from pipeline.models.weights import save_params
from tools import tiny_tokenizers

TEXTS = (
    "a red circle above a blue square",
    "two green triangles on a white table",
    "caption en",
    "describe en",
)
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 40,
    "patch_size": 8,
}
DECODER = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 12,
}
FAMILY_TO_OPTIONS: dict[str, dict[str, float]] = {
    "gemma": {"num_key_value_heads": 1},
    # The window is shorter than the prompt, the caps bite, and the scale is unusual.
    "gemma2": {
        "num_key_value_heads": 2,
        "sliding_window": 7,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
    },
}


@functools.cache
def siglip_tokenizer() -> Siglip2Tokenizer:
    return tiny_tokenizers.siglip_tokenizer(TEXTS, n_tokens=320)


@functools.cache
def paligemma_tokenizer() -> GemmaTokenizer:
    return tiny_tokenizers.paligemma_tokenizer(TEXTS, n_tokens=320)


def siglip_config() -> SiglipConfig:
    text = {
        "vocab_size": len(siglip_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 18,
        "projection_size": VISION["hidden_size"],
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
    }
    return SiglipConfig(
        text_config=text, vision_config=VISION, architectures=["SiglipModel"]
    )


def paligemma_config(family: str) -> PaliGemmaConfig:
    tokenizer = paligemma_tokenizer()
    text = {"model_type": family, "vocab_size": len(tokenizer)}
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False}
    return PaliGemmaConfig(
        text_config={**text, **DECODER, **FAMILY_TO_OPTIONS[family]},
        vision_config={**vision, **VISION},
        projection_dim=DECODER["hidden_size"],
        hidden_size=DECODER["hidden_size"],
        vocab_size=len(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        architectures=["PaliGemmaForConditionalGeneration"],
    )


def write_siglip(folder: Path, rng_seed: int = 0) -> Path:
    config = siglip_config()
    module = Siglip(config, rngs=nnx.Rngs(rng_seed))
    save_params(randomized(module, rng_seed), folder, np.float32)
    config.save_pretrained(folder)
    siglip_tokenizer().save_pretrained(folder)
    _processor().save_pretrained(folder)
    return folder


def write_paligemma(folder: Path, family: str = "gemma", rng_seed: int = 0) -> Path:
    config = paligemma_config(family)
    module = PaliGemma(config, rngs=nnx.Rngs(rng_seed))
    save_params(randomized(module, rng_seed), folder, np.float32)
    config.save_pretrained(folder)
    paligemma_tokenizer().save_pretrained(folder)
    n_patches = (VISION["image_size"] // VISION["patch_size"]) ** 2
    _processor(image_seq_length=n_patches).save_pretrained(folder)
    return folder


def _processor(**options: int) -> SiglipImageProcessorPil:
    side = VISION["image_size"]
    return SiglipImageProcessorPil(size={"height": side, "width": side}, **options)


def randomized(module: nnx.Module, rng_seed: int) -> nnx.State:
    """The parameters with noise on vectors and larger matrices."""
    rngs = nnx.Rngs(rng_seed)
    flat = nnx.to_flat_state(nnx.state(module))
    return nnx.from_flat_state(
        [
            (path, leaf.replace(_randomized(path, leaf[...], rngs)))
            for path, leaf in flat
        ]
    )


def _randomized(
    path: tuple[str | int, ...], leaf: jax.Array, rngs: nnx.Rngs
) -> jax.Array:
    if leaf.ndim == 1:
        return leaf + 0.3 * jax.random.normal(rngs.noise(), leaf.shape)
    # With a large tied table the decoder only ever repeats the last token.
    return 0.4 * leaf if "embed_tokens" in path else 2 * leaf


def random_images(n: int, rng_seed: int = 0) -> np.ndarray:
    """uint8 `[n, s, s, 3]` of coarse squares; a model cannot tell noise apart."""
    rng = np.random.default_rng(rng_seed)
    coarse = rng.integers(0, 256, (n, 4, 4, 3), np.uint8)
    side = VISION["image_size"] // 4
    return coarse.repeat(side, axis=1).repeat(side, axis=2)
