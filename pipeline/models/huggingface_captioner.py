"""Any image-text-to-text model of Hugging Face as a captioner. Needs the extra [torch].

In: images and prompts. Out: captions. The checkpoint's own processor prepares both, in
its chat template if it has one. Weights are safetensors, and code is that of the
installed transformers: pickles and the code of a checkpoint are refused.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from pipeline.config.captions import Decoding, Granularity
from pipeline.config.prompts import around_images
from pipeline.models.checkpoints import FLOATS, resolve_checkpoint, weight_files
from pipeline.models.interfaces import Caption
from pipeline.records import FinishReason


def check(granularity: Granularity) -> None:
    """Raises ValueError if the checkpoint cannot be a captioner; reads no weights."""
    _Checkpoint.open(granularity)


def load(granularity: Granularity) -> "HuggingFaceCaptioner":
    """Raises ValueError as `check`, or if weights are missing."""
    checkpoint = _Checkpoint.open(granularity)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _load_model(checkpoint, granularity.dtype).to(device)
    batch_size = granularity.batch_size
    return HuggingFaceCaptioner(
        batch_size, checkpoint.processor, model, _end_ids(model)
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Checkpoint:
    """A checkpoint whose weights are still on disk."""

    folder: Path
    config: PretrainedConfig
    processor: ProcessorMixin

    @classmethod
    def open(cls, granularity: Granularity) -> "_Checkpoint":
        if granularity.n_model_shards != 1:
            raise ValueError(
                f"n_model_shards={granularity.n_model_shards}: expected 1 of captioner "
                "'huggingface'"
            )
        folder = resolve_checkpoint(granularity.checkpoint, granularity.revision)
        config = _read(AutoConfig, folder)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise ValueError(
                f"checkpoint={str(folder)!r}: expected a model of images and text to "
                f"text, found {config.model_type!r}"
            )
        processor = _read(AutoProcessor, folder)
        if not isinstance(processor, ProcessorMixin):
            raise ValueError(
                f"checkpoint={str(folder)!r}: expected a processor of images and text, "
                f"found {type(processor).__name__}"
            )
        _prepare(processor, granularity.resampling)
        if getattr(config, "quantization_config", None) is None:
            _check_floats(folder)
        return cls(folder, config, processor)


def _read(auto: Any, folder: Path) -> Any:
    """The object of an Auto class in a folder, if its code is in transformers."""
    try:
        return auto.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        line = " ".join(str(error).split())
        reason = "its own code is refused" if "trust_remote_code" in line else line
        raise ValueError(
            f"checkpoint={str(folder)!r}: expected what transformers' {auto.__name__} "
            f"can read ({reason})"
        ) from error


def _check_floats(folder: Path) -> None:
    """Raises ValueError for integers that transformers would take for weights."""
    for path in weight_files(folder):
        with safetensors.safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                kind = file.get_slice(name).get_dtype()
                if name.endswith("weight") and kind not in FLOATS:
                    raise ValueError(
                        f"{path}: {name} is {kind}: expected floats, or a "
                        "quantization_config in config.json"
                    )


def _prepare(processor: ProcessorMixin, resampling: str) -> None:
    """Has prompts padded on the left, where answers do not follow, and images resized
    by the filter that is asked for."""
    tokenizer, images = processor.tokenizer, processor.image_processor
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if resampling:
        if not hasattr(images, "resample"):
            name = type(images).__name__
            raise ValueError(f"resampling={resampling!r}: expected '' of {name}")
        images.resample = Image.Resampling[resampling.upper()]


def _load_model(checkpoint: _Checkpoint, dtype: str) -> PreTrainedModel:
    text = checkpoint.config.get_text_config()
    is_capped = getattr(text, "attn_logit_softcapping", None) is not None
    model, found = AutoModelForImageTextToText.from_pretrained(
        checkpoint.folder,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        trust_remote_code=False,
        # PyTorch's fused attention leaves out the cap of Gemma 2.
        attn_implementation="eager" if is_capped else None,
        output_loading_info=True,
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"checkpoint={str(checkpoint.folder)!r}: expected weights of {missing[0]} "
            f"and {len(missing) - 1} others"
        )
    # How to decode is the recipe's to say; of the checkpoint's word only tokens count.
    said = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=said.bos_token_id,
        eos_token_id=said.eos_token_id,
        decoder_start_token_id=said.decoder_start_token_id,
        pad_token_id=checkpoint.processor.tokenizer.pad_token_id,
    )
    if said.eos_token_id is None:
        eos_token_id = checkpoint.processor.tokenizer.eos_token_id
        model.generation_config.eos_token_id = eos_token_id
    return model.eval()


def _end_ids(model: PreTrainedModel) -> list[int]:
    ids = model.generation_config.eos_token_id
    return [ids] if isinstance(ids, int) else list(ids or ())


@dataclasses.dataclass(frozen=True)
class _Row:
    """One caption to make."""

    image: Image.Image
    prompt: str
    key: np.ndarray  # uint32 [2]


@dataclasses.dataclass(frozen=True, eq=False)
class HuggingFaceCaptioner:
    """A model on the first GPU, or the CPU if there is none; made by `load`.

    The vision tower runs once a caption: models differ in where they keep its output.
    """

    batch_size: int
    processor: ProcessorMixin
    model: PreTrainedModel
    end_ids: Sequence[int]

    def prepare_image(self, rgb: np.ndarray) -> np.ndarray:
        return rgb

    def encode(self, images: Sequence[np.ndarray]) -> list[Image.Image]:
        return [Image.fromarray(rgb) for rgb in images]

    def caption(
        self,
        features: Sequence[Image.Image],
        prompts: Sequence[str],
        granularity: Granularity,
        keys: np.ndarray,
    ) -> list[tuple[Caption, ...]]:
        """Captions of every image; its samples are rows of a batch."""
        rows = [
            _Row(image, prompt, key)
            for image, prompt, of_image in zip(features, prompts, keys, strict=True)
            for key in of_image
        ]
        starts = range(0, len(rows), self.batch_size)
        captions = [
            caption
            for start in starts
            for caption in self._captions(
                rows[start : start + self.batch_size], granularity
            )
        ]
        n = granularity.decoding.n_samples
        return [tuple(captions[i : i + n]) for i in range(0, len(captions), n)]

    def _captions(
        self, rows: Sequence[_Row], granularity: Granularity
    ) -> list[Caption]:
        """Half a batch at a time if the whole is too much for the GPU's memory."""
        try:
            return self._answers(rows, granularity)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        half = len(rows) // 2
        return [
            *self._captions(rows[:half], granularity),
            *self._captions(rows[half:], granularity),
        ]

    def _answers(self, rows: Sequence[_Row], granularity: Granularity) -> list[Caption]:
        inputs = self._inputs(rows).to(self.model.device, self.model.dtype)
        inputs.pop("labels", None)  # PaliGemma's processor adds them
        choice = _Choice([row.key for row in rows], granularity.decoding)
        with torch.inference_mode():
            self.model.generate(
                **inputs,
                do_sample=False,  # `choice` leaves one token a row
                max_new_tokens=granularity.max_new_tokens,
                logits_processor=LogitsProcessorList([choice]),
            )
        ids, logprobs = choice.result()
        return list(map(self._caption, ids, logprobs))

    def _inputs(self, rows: Sequence[_Row]) -> Any:
        """Prompts and images as tensors."""
        if self.processor.chat_template is None:
            return self.processor(
                images=[[row.image] * _n_images(row.prompt) for row in rows],
                text=[self._add_marks(row.prompt) for row in rows],
                padding=True,
                return_tensors="pt",
            )
        return self.processor.apply_chat_template(
            [[{"role": "user", "content": _content(row)}] for row in rows],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            sanitize_control_tokens=True,  # of alt texts
            processor_kwargs={"padding": True},
        )

    def _add_marks(self, prompt: str) -> str:
        """A prompt with the processor's own marks for its images."""
        mark = getattr(self.processor, "image_token", "")
        texts = around_images(prompt)
        return mark.join(text.replace(mark, "") if mark else text for text in texts)

    def _caption(self, ids: np.ndarray, logprobs: np.ndarray) -> Caption:
        """One row of all that was chosen, also after its end."""
        ends = np.flatnonzero(np.isin(ids, self.end_ids))
        n_tokens = int(ends[0]) + 1 if len(ends) else len(ids)
        words = ids[: n_tokens - bool(len(ends))]
        return Caption(
            text=self.processor.tokenizer.decode(words, skip_special_tokens=True),
            n_tokens=n_tokens,
            finish_reason=FinishReason.STOP if len(ends) else FinishReason.LENGTH,
            mean_logprob=float(logprobs[:n_tokens].mean()),
        )


def _n_images(prompt: str) -> int:
    return len(around_images(prompt)) - 1


def _content(row: _Row) -> list[dict[str, Any]]:
    """The parts of a chat message."""
    first, *rest = around_images(row.prompt)
    parts: list[dict[str, Any]] = [{"type": "text", "text": first}]
    for text in rest:
        parts += [
            {"type": "image", "image": row.image},
            {"type": "text", "text": text},
        ]
    return [part for part in parts if part.get("text") != ""]


class _Choice(LogitsProcessor):
    """Chooses the next token of every row, and leaves no other to choose.

    Draws by the Gumbel-max trick, with one generator per row: a row's draw depends on
    its key and its own scores alone.
    """

    def __init__(self, keys: Sequence[np.ndarray], decoding: Decoding) -> None:
        self._keys = keys
        self._generators: list[torch.Generator] = []
        self._is_greedy = decoding.temperature == 0
        self._warpers = LogitsProcessorList()
        if not self._is_greedy:
            self._warpers.append(TemperatureLogitsWarper(decoding.temperature))
        if decoding.top_p < 1:
            self._warpers.append(TopPLogitsWarper(decoding.top_p))
        self._steps: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.Tensor
    ) -> torch.Tensor:
        scores = scores.float()
        warped = self._warpers(input_ids, scores)
        noisy = warped if self._is_greedy else warped + self._noise(scores)
        ids = noisy.argmax(-1, keepdim=True)
        self._steps.append((ids, scores.log_softmax(-1).gather(-1, ids)))
        return torch.full_like(scores, -torch.inf).scatter(-1, ids, 0)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and their log-probabilities before all warping, `[b, t]`."""
        ids, logprobs = zip(*self._steps, strict=True)
        return torch.cat(ids, 1).cpu().numpy(), torch.cat(logprobs, 1).cpu().numpy()

    def _noise(self, scores: torch.Tensor) -> torch.Tensor:
        if not self._generators:
            seeds = [int(high) << 32 | int(low) for high, low in self._keys]
            self._generators = [
                torch.Generator(scores.device).manual_seed(seed) for seed in seeds
            ]
        draws = [
            torch.empty_like(row).exponential_(generator=generator)
            for row, generator in zip(scores, self._generators, strict=True)
        ]
        return -torch.stack(draws).log()
