"""Gemini as a captioner, through Beam's own handler. Needs the extra [gemini].

In: images and prompts. Out: captions. An error about the content of a request becomes a
failed caption. Any other becomes a `ServiceError`: of the service, or of settings under
which thinking leaves no token for the answer. Retries, and waiting for a busy service,
are up to Beam's `GeminiModelHandler`.

Credentials come from the environment: GOOGLE_API_KEY or GEMINI_API_KEY, else
GOOGLE_CLOUD_PROJECT and GOOGLE_CLOUD_LOCATION with Google's default credentials.
"""

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

import httpx2
import numpy as np
import requests
import simplejpeg
from apache_beam.ml.inference.gemini_inference import GeminiModelHandler
from google import genai
from google.auth.exceptions import GoogleAuthError
from google.genai import errors, types
from PIL import Image

from pipeline.config import prompts
from pipeline.config.captions import Granularity
from pipeline.models.interfaces import Caption, ServiceError
from pipeline.records import FinishReason

_MAX_SIDE_PX = 1024
_JPEG_QUALITY = 95
_TIMEOUT_MS = 120_000  # of one request; by default there is no limit
_MAX_TEMPERATURE = 2.0  # of the API
_MAX_CUT = 4  # answers cut off by thinking, before a granularity has a whole one
_UNUSED_FIELDS = ("revision", "dtype", "n_model_shards")
_VARIABLES = (
    "GOOGLE_API_KEY",
    "GEMINI_API_KEY",
    "GOOGLE_CLOUD_PROJECT",
    "GOOGLE_CLOUD_LOCATION",
)

# A lost or slow connection, of the client or of its credentials.
_TRANSPORT_ERRORS = (httpx2.TransportError, requests.RequestException)

_FINISHED = {
    types.FinishReason.STOP: FinishReason.STOP,
    types.FinishReason.MAX_TOKENS: FinishReason.LENGTH,
}
_CONTENT_CODES = (400, 413, 422)  # invalid, too large, cannot be processed
# Errors 400 about the caller, not about the image.
_CALLER_STATUSES = ("FAILED_PRECONDITION",)
_CALLER_REASONS = ("API_KEY_INVALID", "API_KEY_EXPIRED", "API_KEY_SERVICE_BLOCKED")


def check(granularity: Granularity) -> None:
    """Raises ValueError if the model cannot be asked.

    Asks for the number of tokens of a word, which is free, to check credentials and
    model. A service that cannot be reached is no error yet.
    """
    for name in _UNUSED_FIELDS:
        value, default = getattr(granularity, name), getattr(Granularity, name)
        if value != default:
            raise ValueError(f"{name}={value!r}: expected {default!r} of a Gemini")
    temperature = granularity.decoding.temperature
    if temperature > _MAX_TEMPERATURE:
        expected = f"at most {_MAX_TEMPERATURE} of a Gemini"
        raise ValueError(f"temperature={temperature}: expected {expected}")
    model = granularity.checkpoint
    handler = _handler(model)
    options = types.CountTokensConfig(http_options=_http_options())
    try:
        client = handler.load_model()  # closes itself when nothing refers to it
        client.models.count_tokens(model=model, contents="a", config=options)
    except GoogleAuthError as error:
        raise ValueError(_line(model, error)) from error
    except errors.ClientError as error:
        if error.code != 429:
            raise ValueError(_line(model, error)) from error
    except (errors.APIError, *_TRANSPORT_ERRORS):
        pass


def load(granularity: Granularity) -> "GeminiCaptioner":
    """Opens a client of the model of a granularity.

    Raises:
      ValueError: if the environment has no credentials.
    """
    handler = _handler(granularity.checkpoint)
    return GeminiCaptioner(
        batch_size=granularity.batch_size,
        resampling=Image.Resampling[(granularity.resampling or "lanczos").upper()],
        handler=handler,
        client=handler.load_model(),
    )


@dataclasses.dataclass(frozen=True)
class _CutOff:
    """An answer for which thinking left too few tokens, or none."""

    caption: Caption  # what there is of it, or a failed one
    error: ServiceError  # says what to set


@dataclasses.dataclass(frozen=True, eq=False)
class GeminiCaptioner:
    """A Gemini model, opened by `load`; asks for `batch_size` captions at a time."""

    batch_size: int
    resampling: Image.Resampling
    handler: GeminiModelHandler
    client: genai.Client
    answered: set[Granularity] = dataclasses.field(default_factory=set)
    n_cut: collections.Counter[Granularity] = dataclasses.field(
        default_factory=collections.Counter
    )

    def prepare_image(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 `[h, w, 3]` to a JPEG of at most 1024 x 1024, uint8 `[n_bytes]`."""
        height, width, _ = rgb.shape
        scale = _MAX_SIDE_PX / max(height, width)
        if scale < 1:
            size = (max(round(width * scale), 1), max(round(height * scale), 1))
            rgb = np.asarray(Image.fromarray(rgb).resize(size, self.resampling))
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), _JPEG_QUALITY)
        return np.frombuffer(jpeg, np.uint8)

    def encode(self, images: Sequence[np.ndarray]) -> list[bytes]:
        """The bytes of the JPEGs of `prepare_image`."""
        return [image.tobytes() for image in images]

    def caption(
        self,
        features: Sequence[bytes],
        prompts: Sequence[str],
        granularity: Granularity,
        keys: np.ndarray,
    ) -> list[tuple[Caption, ...] | ServiceError]:
        """Sends one request per caption, as not every model gives several answers."""
        n_samples = granularity.decoding.n_samples
        contents = map(_contents, features, prompts)
        repeated = [content for content in contents for _ in range(n_samples)]
        options = [_options(granularity, int(key[0])) for row in keys for key in row]
        with futures.ThreadPoolExecutor(self.batch_size) as executor:
            replies = list(executor.map(self._answer, repeated, options))
        answers = list(self._resolve(replies, granularity))
        starts = range(0, len(answers), n_samples)
        return [_samples(answers[i : i + n_samples]) for i in starts]

    def _resolve(
        self, replies: Sequence[Caption | _CutOff | ServiceError], asked: Granularity
    ) -> Iterator[Caption | ServiceError]:
        """Yields captions; a run stops if the first answers are all cut off.

        A cut answer among whole ones is the fault of its image.
        """
        if any(isinstance(reply, Caption) and reply.is_made for reply in replies):
            self.answered.add(asked)
        self.n_cut[asked] += sum(isinstance(reply, _CutOff) for reply in replies)
        is_in_vain = asked not in self.answered and self.n_cut[asked] >= _MAX_CUT
        for reply in replies:
            if isinstance(reply, _CutOff):
                yield reply.error if is_in_vain else reply.caption
            else:
                yield reply

    def _answer(
        self, contents: list[Any], options: types.GenerateContentConfig
    ) -> Caption | _CutOff | ServiceError:
        try:
            (result,) = self.handler.run_inference(
                [contents], self.client, {"config": options}
            )
        except errors.APIError as error:
            line = _line(self.handler.model_name, error)
            return Caption.failed(line) if _is_of_content(error) else ServiceError(line)
        except GoogleAuthError as error:
            return ServiceError(_line(self.handler.model_name, error))
        caption = _caption(result.inference)
        if _is_cut_by_thoughts(result.inference):
            return _CutOff(caption, self._too_few_tokens(options))
        return caption

    def _too_few_tokens(self, options: types.GenerateContentConfig) -> ServiceError:
        return ServiceError(
            f"checkpoint={self.handler.model_name!r}: answers end with MAX_TOKENS, as"
            f" thoughts use up max_new_tokens={options.max_output_tokens}: expected a"
            " larger max_new_tokens, or a model that thinks less"
        )


def _handler(model: str) -> GeminiModelHandler:
    """Raises ValueError without credentials in the environment."""
    google_key, gemini_key, project, location = map(os.environ.get, _VARIABLES)
    if api_key := google_key or gemini_key:
        return GeminiModelHandler(model, _generate, api_key=api_key)
    if not (project and location):
        raise ValueError(
            f"no credentials for checkpoint={model!r}: expected GEMINI_API_KEY or "
            "GOOGLE_API_KEY, or GOOGLE_CLOUD_PROJECT and GOOGLE_CLOUD_LOCATION, in the "
            "environment"
        )
    return GeminiModelHandler(model, _generate, project=project, location=location)


def _generate(
    model: str,
    batch: Sequence[list[Any]],
    client: genai.Client,
    inference_args: dict[str, Any],
) -> types.GenerateContentResponse:
    """Sends one request; turns errors of the connection into ones that Beam retries."""
    (contents,) = batch
    try:
        return client.models.generate_content(
            model=model, contents=contents, **inference_args
        )
    except (*_TRANSPORT_ERRORS, ValueError) as error:  # ValueError: of broken JSON
        message = f"{type(error).__name__}: {error}"
        reply = {"status": "UNAVAILABLE", "message": message}
        raise errors.ServerError(503, reply) from error


def _contents(jpeg: bytes, prompt: str) -> list[Any]:
    """The parts of a request: the texts of a prompt around the image."""
    image = types.Part.from_bytes(data=jpeg, mime_type="image/jpeg")
    first, *rest = prompts.around_images(prompt)
    parts = [types.Part.from_text(text=first)]
    for text in rest:
        parts += [image, types.Part.from_text(text=text)]
    return [part for part in parts if part.text != ""]


def _options(granularity: Granularity, key: int) -> types.GenerateContentConfig:
    decoding = granularity.decoding
    return types.GenerateContentConfig(
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        max_output_tokens=granularity.max_new_tokens,
        seed=key & 0x7FFFFFFF,  # an int32
        thinking_config=_thinking(granularity.checkpoint),
        http_options=_http_options(),
    )


def _thinking(model: str) -> types.ThinkingConfig | None:
    """As little thinking as a model allows, since it counts as new tokens, and costs.

    Source: ai.google.dev/gemini-api/docs/thinking. Models that are not listed there
    decide for themselves.
    """
    if "gemini-2.5-flash" in model:
        return types.ThinkingConfig(thinking_budget=0)
    if "gemini-3" in model and "flash" in model:
        return types.ThinkingConfig(thinking_level=types.ThinkingLevel.MINIMAL)
    return None


def _http_options() -> types.HttpOptions:
    return types.HttpOptions(timeout=_TIMEOUT_MS)


def _is_of_content(error: errors.APIError) -> bool:
    """Whether an error is about the content of a request, and would occur again."""
    is_of_caller = error.status in _CALLER_STATUSES or any(
        reason in str(error.details) for reason in _CALLER_REASONS
    )
    return error.code in _CONTENT_CODES and not is_of_caller


def _caption(response: types.GenerateContentResponse) -> Caption:
    feedback = response.prompt_feedback
    if feedback and feedback.block_reason:
        return Caption.failed(f"prompt blocked: {feedback.block_reason.value}")
    if not response.candidates:
        return Caption.failed("no answer: no candidates")
    candidate = response.candidates[0]
    reason = candidate.finish_reason or types.FinishReason.FINISH_REASON_UNSPECIFIED
    text = _text(candidate).strip()
    if reason not in _FINISHED or not text:
        return Caption.failed(f"no caption: finish reason {reason.value}")
    usage, logprob = response.usage_metadata, candidate.avg_logprobs
    return Caption(
        text=text,
        n_tokens=(usage and usage.candidates_token_count) or 0,
        finish_reason=_FINISHED[reason],
        mean_logprob=float("nan") if logprob is None else logprob,
    )


def _is_cut_by_thoughts(response: types.GenerateContentResponse) -> bool:
    """Whether the answer was cut with no text, or with less text than thinking."""
    candidate = next(iter(response.candidates or ()), None)
    if not candidate or candidate.finish_reason != types.FinishReason.MAX_TOKENS:
        return False
    usage = response.usage_metadata
    n_thoughts = (usage and usage.thoughts_token_count) or 0
    n_tokens = (usage and usage.candidates_token_count) or 0
    return not _text(candidate).strip() or n_thoughts > n_tokens


def _text(candidate: types.Candidate) -> str:
    parts = (candidate.content and candidate.content.parts) or []
    return "".join(part.text or "" for part in parts if not part.thought)


def _samples(
    answers: Sequence[Caption | ServiceError],
) -> tuple[Caption, ...] | ServiceError:
    """All samples of an image, or the first error among them."""
    captions = tuple(answer for answer in answers if isinstance(answer, Caption))
    missing = (answer for answer in answers if isinstance(answer, ServiceError))
    return next(missing, captions)


def _line(model: str, error: Exception) -> str:
    text = str(error)
    if isinstance(error, errors.APIError):
        text = f"{error.code} {error.status}: {error.message}"
    return f"checkpoint={model!r}: {' '.join(text.split())}"
