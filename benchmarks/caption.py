"""Measures the speed of captions against the hardware and Hugging Face's `generate`.

    python -m benchmarks.caption                                    # small, for a CPU
    python -m benchmarks.caption --size 3b --dtype bfloat16 --batch-size 256   # a GPU

A model with random weights of the chosen size captions drawn photos at three
granularities, with forced lengths, since speed does not depend on the words. Both sides
get the same weights, images, prompts and lengths and take turns in one process; the
median of each counts. The roofline is the least work that the model needs (`ideal_s`)
at the matrix product and memory bandwidth that this machine reaches. Hugging Face's
side needs the [torch] extra and is omitted without it. Prints JSON.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import simplejpeg
from flax import nnx
from transformers import PaliGemmaConfig, SiglipImageProcessorPil

from pipeline.config.captions import Granularity
from pipeline.config.curation import Limits
from pipeline.images import decoder as images
from pipeline.models.paligemma import PaliGemma
from pipeline.models.paligemma_captioner import PaliGemmaCaptioner
from pipeline.models.weights import save_params
from pipeline.records import SyntheticCaption, content_hash
from pipeline.storage.tables import LotTables, to_table
from tools import tiny_tokenizers

PROMPTS_AND_LENGTHS = (("cap en", 12), ("caption en", 25), ("describe en", 70))
N_REPEATS = 3

# Text and vision configurations; the rest is PaliGemma's. "3b" is the published one.
SIZE_TO_CONFIG: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "small": (
        {
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "vocab_size": 8192,
        },
        {
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 3,
            "image_size": 112,
            "patch_size": 14,
        },
    ),
    "3b": (
        {
            "hidden_size": 2048,
            "intermediate_size": 16_384,
            "num_hidden_layers": 18,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "vocab_size": 257_216,
        },
        {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """Floating-point operations, and bytes read from memory."""

    flops: float
    n_bytes: float = 0.0

    def ideal_s(self, flops_per_s: float, bytes_per_s: float) -> float:
        return max(self.flops / flops_per_s, self.n_bytes / bytes_per_s)


def tower_work(config: PaliGemmaConfig, batch_size: int) -> Work:
    vision = config.vision_config
    p, d = (vision.image_size // vision.patch_size) ** 2, vision.hidden_size
    n_weights = vision.num_hidden_layers * (
        4 * d * d + 2 * d * vision.intermediate_size
    )
    n_weights += 3 * vision.patch_size**2 * d + d * config.projection_dim
    attention = 4 * p * p * d * vision.num_hidden_layers
    return Work(batch_size * (2 * p * n_weights + attention))


def decoder_weights(config: PaliGemmaConfig) -> int:
    """Number of weights of the layers, without the token table."""
    text = config.text_config
    n_heads = 2 * text.num_attention_heads + 2 * text.num_key_value_heads
    attention = n_heads * text.head_dim * text.hidden_size
    mlp = 3 * text.hidden_size * text.intermediate_size
    return text.num_hidden_layers * (attention + mlp)


def prefill_work(config: PaliGemmaConfig, batch_size: int, n_prompt: int) -> Work:
    """Work of the prefill: all tokens through the layers, one through the head."""
    text, vision = config.text_config, config.vision_config
    n = (vision.image_size // vision.patch_size) ** 2 + n_prompt
    width = text.num_attention_heads * text.head_dim
    attention = 4 * n * n * width * text.num_hidden_layers
    head = 2 * text.hidden_size * text.vocab_size
    return Work(batch_size * (2 * n * decoder_weights(config) + attention + head))


def decode_work(
    config: PaliGemmaConfig, batch_size: int, n_cached: float, item_bytes: int
) -> Work:
    """Work of one decode step, which reads all weights, keys and values."""
    text = config.text_config
    n_weights = decoder_weights(config) + text.hidden_size * text.vocab_size
    width = text.num_attention_heads * text.head_dim
    attention = 4 * n_cached * width * text.num_hidden_layers
    n_kv = 2 * text.num_key_value_heads * text.head_dim * text.num_hidden_layers
    return Work(
        flops=batch_size * (2 * n_weights + attention),
        n_bytes=item_bytes * (n_weights + batch_size * n_cached * n_kv),
    )


def ideal_s(
    config: PaliGemmaConfig,
    batch_size: int,
    dtype: str,
    flops_per_s: float,
    bytes_per_s: float,
    n_prompt: int = 4,
) -> dict[str, float]:
    """The least seconds of a batch, by part, for all granularities."""
    item_bytes = jnp.dtype(dtype).itemsize
    n_prefix = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    n_prefix += n_prompt
    rates = (flops_per_s, bytes_per_s)
    prefill = prefill_work(config, batch_size, n_prompt).ideal_s(*rates)
    steps = [
        decode_work(config, batch_size, n_prefix + i, item_bytes).ideal_s(*rates)
        for _, length in PROMPTS_AND_LENGTHS
        for i in range(1, length)
    ]
    return {
        "tower": tower_work(config, batch_size).ideal_s(*rates),
        "prefill": len(PROMPTS_AND_LENGTHS) * prefill,
        "decode": sum(steps),
    }


def measure_rates(dtype: str) -> tuple[float, float]:
    """Measures FLOP/s of a large matrix product and bytes/s of memory on one device."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((n, n), dtype)
    multiply = jax.jit(lambda x: x @ x)
    n_items = (1 << 26) if jax.default_backend() == "cpu" else (1 << 29)
    x = jnp.ones(n_items, jnp.float32)
    doubled = jax.jit(lambda x: 2 * x)  # reads and writes
    return (
        2 * n**3 / median_s(lambda: multiply(a), n_repeats=10),
        2 * x.nbytes / median_s(lambda: doubled(x), n_repeats=10),
    )


def median_s(work: Callable[[], Any], n_repeats: int = N_REPEATS) -> float:
    """Median time of `work` in seconds, after one run that does not count."""
    jax.block_until_ready(work())
    times = []
    for _ in range(n_repeats):
        start = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def write_checkpoint(folder: pathlib.Path, size: str, dtype: str) -> PaliGemmaConfig:
    """Writes a checkpoint with random weights, so captions are random too."""
    text, vision = SIZE_TO_CONFIG[size]
    tokenizer = tiny_tokenizers.paligemma_tokenizer(
        [prompt for prompt, _ in PROMPTS_AND_LENGTHS], n_tokens=320
    )
    config = PaliGemmaConfig(
        text_config={"model_type": "gemma"} | text,
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False}
        | vision,
        projection_dim=text["hidden_size"],
        hidden_size=text["hidden_size"],
        vocab_size=text["vocab_size"],
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        architectures=["PaliGemmaForConditionalGeneration"],
    )
    model = nnx.jit(lambda: PaliGemma(config, rngs=nnx.Rngs(0)))()
    # The end is never the likeliest token, so no caption ends early.
    table = model.language_model.embed_tokens.weight
    table[...] = table[...].at[tokenizer.eos_token_id].set(0)
    save_params(nnx.state(model), folder, jnp.dtype(dtype))
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = vision["image_size"]
    SiglipImageProcessorPil(
        size={"height": side, "width": side},
        image_seq_length=(side // vision["patch_size"]) ** 2,
    ).save_pretrained(folder)
    return config


def make_photos(n: int) -> list[bytes]:
    """Makes JPEGs of 400 x 300 px with some structure."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (n, 15, 20, 3), np.uint8)
    smooth = coarse.repeat(20, axis=1).repeat(20, axis=2)
    return [simplejpeg.encode_jpeg(np.ascontiguousarray(x), 85) for x in smooth]


@dataclasses.dataclass(frozen=True, eq=False)
class Ours:
    """This project's captioner, with forced lengths."""

    captioner: PaliGemmaCaptioner
    granularities: tuple[Granularity, ...]

    @classmethod
    def load(cls, folder: pathlib.Path, batch_size: int, dtype: str) -> "Ours":
        options: dict[str, Any] = {"batch_size": batch_size, "dtype": dtype}
        granularities = tuple(
            Granularity(prompt, str(folder), prompt, length, **options)
            for prompt, length in PROMPTS_AND_LENGTHS
        )
        return cls(PaliGemmaCaptioner.load(granularities[0]), granularities)

    def captions(self, pixels: list[np.ndarray]) -> list:
        features = self.captioner.encode(pixels)
        keys = np.zeros((len(pixels), 1, 2), np.uint32)
        return [
            self.captioner.caption(features, [g.prompt] * len(pixels), g, keys)
            for g in self.granularities
        ]

    def part_to_s(self, encoded: list[bytes]) -> dict[str, float]:
        """Measures the seconds of one batch, by part, each part alone."""
        pixels = [self.prepare(data) for data in encoded]
        features = self.captioner.encode(pixels)
        rows = list(zip(*self.captions(pixels), strict=True))
        answers = median_s(lambda: self._answers(features, first_only=False))
        prefills = median_s(lambda: self._answers(features, first_only=True))
        return {
            "decode JPEG": median_s(lambda: [self.prepare(x) for x in encoded]),
            "tower": median_s(lambda: self.captioner.encode(pixels).batches),
            "prefill": prefills,
            "decode loop": answers - prefills,
            "write": median_s(lambda: write_table(encoded, rows)),
        }

    def prepare(self, data: bytes) -> np.ndarray:
        return self.captioner.prepare_image(images.decode(data, Limits()).rgb)

    def _answers(self, features: Any, first_only: bool) -> list:
        n = features.n_images
        keys = np.zeros((n, 1, 2), np.uint32)
        return [
            self.captioner.caption(
                features,
                [g.prompt] * n,
                dataclasses.replace(g, max_new_tokens=1) if first_only else g,
                keys,
            )
            for g in self.granularities
        ]


def write_table(encoded: list[bytes], rows: list) -> int:
    """Writes the captions to a table and returns its size in bytes."""
    table = to_table(
        [
            SyntheticCaption(
                content_hash(data),
                b"",
                0,
                caption.text,
                caption.n_tokens,
                str(caption.finish_reason),
                caption.mean_logprob,
            )
            for data, granularities in zip(encoded, rows, strict=True)
            for (caption,) in granularities
        ],
        SyntheticCaption,
    )
    with tempfile.TemporaryDirectory() as folder:
        LotTables(folder).write("lot", table)
    return table.nbytes


def hugging_face(
    folder: pathlib.Path, dtype: str
) -> Callable[[list[np.ndarray]], list] | None:
    """Returns a function that captions by `generate`; None without torch."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, dtype=getattr(torch, dtype)
    ).to(device)
    model.generation_config.eos_token_id = None
    processor = transformers.PaliGemmaProcessor(
        transformers.AutoImageProcessor.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )

    def captions(pixels: list[np.ndarray]) -> list:
        found = []
        for prompt, length in PROMPTS_AND_LENGTHS:
            inputs = processor(
                images=pixels,
                text=["<image>" + prompt] * len(pixels),
                return_tensors="pt",
            ).to(device)
            inputs.pop("labels", None)
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
            ids = model.generate(
                **inputs,
                min_new_tokens=length,
                max_new_tokens=length,
                do_sample=False,
            )
            found.append(processor.batch_decode(ids[:, -length:]))
        return found

    return captions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZE_TO_CONFIG, default="small")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(pathlib.Path(folder), arguments)
    print(json.dumps(report, indent=1))


def measure(folder: pathlib.Path, arguments: argparse.Namespace) -> dict[str, Any]:
    size, dtype, n = arguments.size, arguments.dtype, arguments.batch_size
    config = write_checkpoint(folder, size, dtype)
    encoded = make_photos(n)
    ours = Ours.load(folder, n, dtype)
    pixels = [ours.prepare(data) for data in encoded]
    rates = measure_rates(dtype)
    n_prompt = len(ours.captioner.tokens.ids(PROMPTS_AND_LENGTHS[0][0]))
    ideal = ideal_s(config, n, dtype, *rates, n_prompt)
    seconds = median_s(lambda: ours.captions(pixels))
    report = {
        "device": jax.devices()[0].device_kind,
        "size": size,
        "dtype": dtype,
        "batch_size": n,
        "matmul_tflop_per_s": rates[0] / 1e12,
        "bandwidth_gb_per_s": rates[1] / 1e9,
        "images_per_s": n / seconds,
        "captions_per_s": len(PROMPTS_AND_LENGTHS) * n / seconds,
        "share_of_roofline": sum(ideal.values()) / seconds,
        "ideal_ms": {part: 1e3 * s for part, s in ideal.items()},
        "part_ms": {part: 1e3 * s for part, s in ours.part_to_s(encoded).items()},
    }
    generate = hugging_face(folder, dtype)
    if generate is not None:
        reference = median_s(lambda: generate(pixels))
        report["hugging_face_images_per_s"] = n / reference
        report["times_hugging_face"] = reference / seconds
    return report


if __name__ == "__main__":
    main()
