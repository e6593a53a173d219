"""Trains the two tiny checkpoints of the demo and the tests on drawn scenes.

    python -m tools.train_tiny_models --output curation_configs/checkpoints

Writes `tiny-siglip/` and `tiny-paligemma/`, folders in Hugging Face form. On two cores,
stage 1 took 9 minutes, and stages 2 and 3, in parallel, took 21 and 18:

1. The image tower alone learns the color and shape in each patch.
2. SigLIP, with the tower of stage 1, also learns which pictures are copies of each
   other and which text belongs to which picture.
3. PaliGemma, with the tower of stage 1, learns the caption that each prompt asks for.

Stages 2 and 3 may run in parallel. Muon (arXiv:2502.16982) reached the same shape
accuracy as AdamW in fewer steps; see `_optimizer`.
"""

import argparse
import functools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import optax.contrib
from flax import nnx
from transformers import (
    PaliGemmaConfig,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from pipeline.models import paligemma, siglip, weights
from pipeline.models.layers import Linear
from tools import scene_batches, tiny_tokenizers

WIDTH = 128
TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": scene_batches.SIDE_PX,
    "patch_size": scene_batches.PATCH_PX,
}
MAX_TEXT_TOKENS = 40
TEXT_TOWER = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_TEXT_TOKENS,
    "projection_size": WIDTH,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
DECODER = {
    "model_type": "gemma",
    "hidden_size": WIDTH,
    "intermediate_size": 3 * WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
N_STEPS = (1300, 700, 620)
N_TEXT_TOKENS = 640  # an upper bound on both vocabularies, without <loc> and <seg>
PROMPT_TO_TEXT = {"cap en": "short", "caption en": "medium", "describe en": "detailed"}
PROMPT_SHARES = (0.1, 0.35, 0.55)  # of the batches
PROMPT_TO_MAX_TOKENS = {"cap en": 3, "caption en": 14, "describe en": 60}
BATCH_SIZE = 64
COPY_TEMPERATURE = 0.07
BACKGROUND_WEIGHT = 0.1  # of a patch without an object; a patch full of one has 1.1
MUON_LEARNING_RATE = 5e-3
ADAM_LEARNING_RATE = 1.5e-3

Params = Any
Batch = dict[str, Any]
Terms = dict[str, jax.Array]


class PatchProbe(nnx.Module):
    """Color and shape logits of patch tokens; used only in training."""

    def __init__(self, rngs: nnx.Rngs):
        self.linear = Linear(WIDTH, scene_batches.N_PATCH_CLASSES, rngs=rngs)

    def losses(self, tokens: jax.Array, shares: jax.Array) -> Terms:
        """Cross-entropies of `[b, p, d]` tokens against shares, in nats per patch."""
        logits = self.linear(tokens)
        split = scene_batches.N_COLOR_CLASSES
        weights = BACKGROUND_WEIGHT + 1 - shares[..., 0]
        color = optax.softmax_cross_entropy(logits[..., :split], shares[..., :split])
        shape = optax.softmax_cross_entropy(logits[..., split:], shares[..., split:])
        return {
            "color": jnp.average(color, weights=weights),
            "shape": 2 * jnp.average(shape, weights=weights),
        }


def to_pixels(views: jax.Array) -> jax.Array:
    """Maps `[v, b, s, s, 3]` uint8 to `[v * b, s, s, 3]` in [-1, 1]."""
    return views.reshape(-1, *views.shape[2:]) / 127.5 - 1


def to_shares(batch: Batch) -> jax.Array:
    """Reshapes `[v, b, p, c]` shares to `[v * b, p, c]`."""
    return batch["shares"].reshape(-1, *batch["shares"].shape[2:])


def copy_loss(embeddings: jax.Array) -> jax.Array:
    """Symmetric InfoNCE of `[2 b, d]`: row `i` and row `b + i` are copies."""
    first, second = jnp.split(siglip.unit_rows(embeddings), 2)
    logits = first @ second.T / COPY_TEMPERATURE
    labels = jnp.arange(len(logits))
    entropy = optax.softmax_cross_entropy_with_integer_labels
    return (entropy(logits, labels) + entropy(logits.T, labels)).mean() / 2


def text_loss(logits: jax.Array, is_same_text: jax.Array) -> jax.Array:
    """The sigmoid loss of `[n_images, n_texts]`; equal texts elsewhere do not count."""
    n_texts = logits.shape[1]
    is_match = jnp.tile(jnp.eye(n_texts, dtype=bool), (len(logits) // n_texts, 1))
    is_counted = is_match | ~jnp.tile(is_same_text, (len(logits) // n_texts, 1))
    losses = -jax.nn.log_sigmoid(jnp.where(is_match, logits, -logits))
    return (losses * is_counted).sum(axis=1).mean()


def tower_loss(tower: siglip.VisionTower, probe: PatchProbe, batch: Batch) -> Terms:
    """The terms of stage 1."""
    return probe.losses(tower.patch_tokens(to_pixels(batch["views"])), to_shares(batch))


def siglip_loss(model: siglip.Siglip, probe: PatchProbe, batch: Batch) -> Terms:
    """The terms of stage 2."""
    tokens = model.vision_model.patch_tokens(to_pixels(batch["views"]))
    embeddings = model.vision_model.pooled(tokens)
    logits = model.logits(embeddings, model.embed_texts(batch["text_ids"]))
    return probe.losses(tokens, to_shares(batch)) | {
        "copy": copy_loss(embeddings),
        "text": text_loss(logits, batch["is_same_text"]),
    }


def caption_loss(model: paligemma.PaliGemma, probe: PatchProbe, batch: Batch) -> Terms:
    """The terms of stage 3."""
    tokens = model.vision_tower.patch_tokens(to_pixels(batch["views"]))
    features = model.multi_modal_projector.linear(tokens)
    prompt = paligemma.Prompt(batch["prompt_ids"], batch["n_prompt"])
    answers = batch["answer_ids"]
    logits = model.answer_logits(features, prompt, answers)
    is_valid = answers != 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, answers)
    return probe.losses(tokens, to_shares(batch)) | {
        "caption": 4 * (losses * is_valid).sum() / is_valid.sum()
    }


def train(
    module: nnx.Module,
    loss_terms: Callable[..., Terms],
    batches: Iterator[Batch],
    n_steps: int,
) -> nnx.Module:
    """Trains with warm-up and cosine decay, and prints the terms every 50 steps."""
    graph, params = nnx.split(module)
    optimizer = _optimizer(n_steps)
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, state: Any, batch: Batch) -> tuple[Params, Any, Terms]:
        def total(params: Params) -> tuple[jax.Array, Terms]:
            terms = loss_terms(*nnx.merge(graph, params), batch)
            return sum(terms.values()), terms

        gradients, terms = jax.grad(total, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, terms

    start = time.monotonic()
    for i, batch in zip(range(n_steps), batches, strict=False):
        params, state, terms = step(params, state, batch)
        if i % 50 == 0:
            losses = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
            minutes = (time.monotonic() - start) / 60
            print(f"{minutes:6.1f} min  step {i} of {n_steps}  {losses}", flush=True)
    return nnx.merge(graph, params)


def _optimizer(n_steps: int) -> optax.GradientTransformation:
    """Muon for matrices and AdamW for the rest, with the same schedule."""

    def schedule(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(
            0.0, peak, min(100, n_steps // 5), n_steps, peak / 100
        )

    muon = optax.contrib.muon(
        schedule(MUON_LEARNING_RATE),
        adam_learning_rate=schedule(ADAM_LEARNING_RATE),
        adam_b2=0.98,
        weight_decay=0.02,
        consistent_rms=0.2,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def drop_texts(batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        del batch["texts"]
        yield batch


def text_batches(batches: Iterator[Batch], tokenizer: Any) -> Iterator[Batch]:
    """Adds one tokenized text per picture, and which texts of the batch are equal."""
    rng = np.random.default_rng(0)
    for batch in batches:
        texts = [_any_text(texts, rng) for texts in batch.pop("texts")]
        array = np.array(texts)
        batch["text_ids"] = tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=MAX_TEXT_TOKENS,
            return_tensors="np",
        ).input_ids
        batch["is_same_text"] = array[:, None] == array[None]
        yield batch


def _any_text(texts: dict[str, str], rng: np.random.Generator) -> str:
    """Chooses the alt text half of the time, else a caption longer than a noun."""
    others = [texts[name] for name in ("medium", "detailed") if name in texts]
    is_alt_text = not others or rng.random() < 0.5
    return texts["alt_text"] if is_alt_text else others[rng.integers(len(others))]


def caption_batches(batches: Iterator[Batch], tokenizer: Any) -> Iterator[Batch]:
    """Adds one prompt per batch and its answers, padded to the prompt's longest."""
    rng = np.random.default_rng(0)
    for batch in batches:
        prompt = rng.choice(list(PROMPT_TO_TEXT), p=PROMPT_SHARES)
        texts = [texts[PROMPT_TO_TEXT[prompt]] for texts in batch.pop("texts")]
        answers = tokenizer(texts, add_special_tokens=False).input_ids
        rows = [[*ids, tokenizer.eos_token_id] for ids in answers]
        n_tokens = PROMPT_TO_MAX_TOKENS[prompt]
        batch["answer_ids"] = np.zeros((len(rows), n_tokens), np.int32)
        for answer_ids, row in zip(batch["answer_ids"], rows, strict=True):
            answer_ids[: len(row)] = row  # raises if it is too long
        ids = prompt_ids(prompt, tokenizer)
        batch["prompt_ids"] = np.tile(np.array(ids, np.int32), (len(rows), 1))
        batch["n_prompt"] = np.full(len(rows), len(ids), np.int32)
        yield batch


def prompt_ids(prompt: str, tokenizer: Any) -> list[int]:
    """The ids of `<bos>`, the prompt and a newline."""
    words = tokenizer(prompt, add_special_tokens=False).input_ids
    newline = tokenizer("\n", add_special_tokens=False).input_ids
    return [tokenizer.bos_token_id, *words, *newline]


def corpus(n_scenes: int) -> list[str]:
    """Returns texts of scenes, of other pictures, and prompts, to train tokenizers."""
    rng = np.random.default_rng(7)
    pictures = [scene_batches.sample_texts(rng) for _ in range(n_scenes)]
    return [*PROMPT_TO_TEXT, *(text for texts in pictures for text in texts.values())]


def train_tower(work: pathlib.Path, n_steps: int) -> None:
    """Runs stage 1."""
    module = nnx.List([build_tower(nnx.Rngs(0)), PatchProbe(nnx.Rngs(1))])
    batches = drop_texts(scene_batches.stream(1, BATCH_SIZE))
    tower, _ = train(module, tower_loss, batches, n_steps)
    weights.save_params(nnx.split(tower)[1], work / "tower", np.float32)


def build_tower(rngs: nnx.Rngs) -> siglip.VisionTower:
    return siglip.VisionTower(SiglipVisionConfig(**TOWER), rngs=rngs)


def load_tower(folder: pathlib.Path) -> siglip.VisionTower:
    return nnx.merge(*weights.load_module(build_tower, folder, jnp.float32))


def train_siglip(work: pathlib.Path, output: pathlib.Path, n_steps: int) -> None:
    """Runs stage 2."""
    tokenizer = tiny_tokenizers.siglip_tokenizer(corpus(1000), N_TEXT_TOKENS)
    config = SiglipConfig(
        text_config=TEXT_TOWER | {"vocab_size": len(tokenizer)},
        vision_config=TOWER,
        architectures=["SiglipModel"],
    )
    model = siglip.Siglip(config, rngs=nnx.Rngs(2))
    model.vision_model = load_tower(work / "tower")
    module = nnx.List([model, PatchProbe(nnx.Rngs(3))])
    batches = scene_batches.stream(
        2, BATCH_SIZE, n_views=2, off_topic_share=scene_batches.OFF_TOPIC_SHARE
    )
    with_text = text_batches(batches, tokenizer)
    model, _ = train(module, siglip_loss, with_text, n_steps)
    save(output / "tiny-siglip", model, config, tokenizer)


def train_paligemma(work: pathlib.Path, output: pathlib.Path, n_steps: int) -> None:
    """Runs stage 3."""
    tokenizer = tiny_tokenizers.paligemma_tokenizer(
        corpus(1000), N_TEXT_TOKENS, with_locations=False
    )
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False}
    config = PaliGemmaConfig(
        text_config=DECODER | {"vocab_size": len(tokenizer)},
        vision_config=vision | TOWER,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
        vocab_size=len(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        architectures=["PaliGemmaForConditionalGeneration"],
    )
    model = paligemma.PaliGemma(config, rngs=nnx.Rngs(4))
    model.vision_tower = load_tower(work / "tower")
    model.vision_tower.head = None
    module = nnx.List([model, PatchProbe(nnx.Rngs(5))])
    batches = scene_batches.stream(3, BATCH_SIZE)
    with_answers = caption_batches(batches, tokenizer)
    model, _ = train(module, caption_loss, with_answers, n_steps)
    n_patches = (scene_batches.SIDE_PX // scene_batches.PATCH_PX) ** 2
    save(
        output / "tiny-paligemma", model, config, tokenizer, image_seq_length=n_patches
    )


def save(
    folder: pathlib.Path,
    model: nnx.Module,
    config: SiglipConfig | PaliGemmaConfig,
    tokenizer: Any,
    **processor_options: Any,
) -> None:
    """Writes a folder in Hugging Face form, weights in bfloat16."""
    weights.save_params(nnx.split(model)[1], folder, ml_dtypes.bfloat16)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = scene_batches.SIDE_PX
    processor = SiglipImageProcessorPil(
        size={"height": side, "width": side},
        resample=scene_batches.RESAMPLE,
        **processor_options,
    )
    processor.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("tiny-work"))
    parser.add_argument("--stages", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", nargs=3, type=int, default=N_STEPS)
    arguments = parser.parse_args()
    work, output = arguments.work, arguments.output
    if 1 in arguments.stages:
        train_tower(work, arguments.steps[0])
    if 2 in arguments.stages:
        train_siglip(work, output, arguments.steps[1])
    if 3 in arguments.stages:
        train_paligemma(work, output, arguments.steps[2])


if __name__ == "__main__":
    main()
