"""What Hugging Face's PaliGemma in PyTorch answers; the oracle of ours."""

from pathlib import Path

import jax
import numpy as np
import torch
import transformers

from pipeline.models.paligemma import Sampling
from tests.support.goldens import IMAGES, N_NEW_TOKENS, Question


class AddNoise(transformers.LogitsProcessor):
    """Makes the greedy token a draw: the noise of the Gumbel-max trick, from keys."""

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = jax.random.wrap_key_data(keys, impl="threefry2x32")
        self.step = 0

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(self.keys, self.step)
        self.step += 1
        shape = scores.shape[1:]
        noise = jax.vmap(lambda key: jax.random.gumbel(key, shape))(step_keys)
        return scores + torch.tensor(np.asarray(noise))


def generated(folder: Path, question: Question) -> "transformers.utils.ModelOutput":
    """`generate`'s tokens and logits of all images, each with its own prompt."""
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, attn_implementation="eager"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    processor = transformers.PaliGemmaProcessor(
        transformers.AutoImageProcessor.from_pretrained(folder), tokenizer
    )
    n = question.n_samples
    inputs = processor(
        images=[image for image in IMAGES for _ in range(n)],
        text=["<image>" + prompt for prompt in question.prompts for _ in range(n)],
        padding="longest",
        return_tensors="pt",
    )
    inputs.pop("labels", None)
    return model.generate(
        **inputs,
        max_new_tokens=N_NEW_TOKENS,
        do_sample=False,
        logits_processor=processors(question.sampling, question.keys.reshape(-1, 2)),
        return_dict_in_generate=True,
        output_logits=True,
    )


def processors(sampling: Sampling, keys: np.ndarray) -> list:
    """Hugging Face's own temperature and nucleus, then our noise."""
    if sampling.temperature == 0:
        return []
    return [
        transformers.TemperatureLogitsWarper(sampling.temperature),
        transformers.TopPLogitsWarper(sampling.top_p),
        AddNoise(keys),
    ]


def answers(folder: Path, question: Question) -> np.ndarray:
    """int `[n_images * n_samples, N_NEW_TOKENS]`; 0 after the end token."""
    return padded(generated(folder, question))


def padded(output: "transformers.utils.ModelOutput") -> np.ndarray:
    n_steps = len(output.logits)
    ids = output.sequences[:, -n_steps:].numpy()
    return np.pad(ids, ((0, 0), (0, N_NEW_TOKENS - n_steps)))
