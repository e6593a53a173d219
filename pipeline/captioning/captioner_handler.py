"""Runs a captioner, of the project or of your own, as Beam's model handler.

In: batches of prepared images. Out: rows of captions. A caption that fails costs no
other caption. Randomness depends on identities alone: seed, image, granularity and
number of the sample.
"""

import dataclasses
import hashlib
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from apache_beam.ml.inference.base import ModelHandler

from pipeline.config.captions import Granularity
from pipeline.config.prompts import prompt_hash
from pipeline.models.interfaces import Caption, Captioner, ServiceError
from pipeline.records import SyntheticCaption
from pipeline.sources import imported_captions

# Modules of captioners are imported on use: they take seconds, and some need an extra.
_NAME_TO_MODULE = {
    "gemini": "pipeline.captioning.gemini",
    "huggingface": "pipeline.models.huggingface_captioner",
    "paligemma": "pipeline.models.paligemma_captioner",
}
_NAME_TO_EXTRA = {"gemini": "gemini", "huggingface": "torch"}
_METHODS = ("load", "prepare_image", "encode", "caption")  # of a class of one's own


@dataclasses.dataclass(frozen=True)
class CaptionTarget:
    """A granularity, and the folder of its captions."""

    granularity: Granularity
    fingerprint: str
    folder: str


@dataclasses.dataclass(frozen=True)
class PreparedImage:
    """One image, prepared for the captioner, with the prompt of each granularity."""

    image_hash: bytes
    pixels: np.ndarray
    prompts: tuple[str, ...]  # one per target

    def alone(self, i: int) -> "PreparedImage":
        """The same image with only its `i`-th prompt."""
        return dataclasses.replace(self, prompts=self.prompts[i : i + 1])


Rows = tuple[SyntheticCaption, ...]  # the samples of one image and prompt
Answers = tuple[Rows | ServiceError, ...]  # of one image, one per target


class CaptionerHandler(ModelHandler[PreparedImage, Answers, Captioner]):
    """A captioner; `inference_args["targets"]` lists the captions to make."""

    def __init__(self, granularity: Granularity) -> None:
        """Takes the granularity that names the model; others of it may be targets."""
        super().__init__()
        self.granularity = granularity

    def load_model(self) -> Captioner:
        return load_captioner(self.granularity)

    def run_inference(
        self,
        batch: Sequence[PreparedImage],
        model: Captioner,
        inference_args: dict[str, Any] | None = None,
    ) -> list[Answers]:
        """Captions each image for every target, from one encoding of the image.

        A ValueError costs only the captions that raise it: the batch is halved down to
        one caption, which becomes a row with the error. Any other exception is not the
        image's fault and stops the lot.
        """
        targets: tuple[CaptionTarget, ...] = (inference_args or {})["targets"]
        try:
            return _captions(model, batch, targets)
        except ValueError as error:
            if len(batch) == len(targets) == 1:
                return [
                    ((failed_row(batch[0].image_hash, batch[0].prompts[0], error),),)
                ]
        if len(batch) > 1:
            half = len(batch) // 2
            return [
                *self.run_inference(batch[:half], model, inference_args),
                *self.run_inference(batch[half:], model, inference_args),
            ]
        (image,) = batch
        one_by_one = [
            self.run_inference([image.alone(i)], model, {"targets": (one,)})
            for i, one in enumerate(targets)
        ]
        return [tuple(rows for ((rows,),) in one_by_one)]


def load_captioner(granularity: Granularity) -> Captioner:
    """Loads the model of a granularity.

    Raises:
      ValueError: if there is no such checkpoint, or it cannot be read here.
    """
    return _find_captioner(granularity).load(granularity)


def check(granularity: Granularity) -> None:
    """Raises ValueError if a granularity cannot be captioned here; reads no weights.

    Either `load_captioner` would fail, or the files to import hold no captions.
    """
    if granularity.captioner == "imported":
        imported_captions.check(granularity)
        return
    captioner = _find_captioner(granularity)
    if hasattr(captioner, "check"):  # a captioner of one's own need not have it
        captioner.check(granularity)


def check_package(granularity: Granularity) -> None:
    """Raises ValueError if a package that a captioner needs is not installed."""
    if granularity.has_own_captioner or granularity.captioner in _NAME_TO_EXTRA:
        _find_captioner(granularity)


def _find_captioner(granularity: Granularity) -> Any:
    """The module or class that has `load`, and mostly `check`, of a captioner."""
    name = granularity.captioner
    if granularity.has_own_captioner:
        return _find_own(name)
    try:
        return importlib.import_module(_NAME_TO_MODULE[name])
    except ImportError as error:
        if name not in _NAME_TO_EXTRA:
            raise
        raise ValueError(
            f"captioner={name!r} of granularity {granularity.name!r}: expected the"
            f" extra [{_NAME_TO_EXTRA[name]}] to be installed ({error})"
        ) from error


def _find_own(name: str) -> Any:
    """The class `MODULE:CLASS`; ValueError if there is none, or it lacks a method."""
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"captioner={name!r}: expected a module {module_name!r} to import ({error})"
        ) from error
    found = getattr(module, class_name, None)
    missing = [m for m in _METHODS if not callable(getattr(found, m, None))]
    if missing:
        raise ValueError(
            f"captioner={name!r}: expected a class with {', '.join(_METHODS)} in"
            f" {module_name!r}, found no {missing[0] if found else class_name}"
        )
    return found


def _captions(
    captioner: Captioner,
    batch: Sequence[PreparedImage],
    targets: Sequence[CaptionTarget],
) -> list[Answers]:
    features = captioner.encode([image.pixels for image in batch])
    hashes = [image.image_hash for image in batch]
    columns = []
    for i, one in enumerate(targets):
        prompts = [image.prompts[i] for image in batch]
        keys = sampling_keys(one, hashes)
        answers = captioner.caption(features, prompts, one.granularity, keys)
        columns.append(map(_answer, hashes, prompts, answers))
    return list(zip(*columns, strict=True))


def sampling_keys(target: CaptionTarget, image_hashes: Sequence[bytes]) -> np.ndarray:
    """Random keys of captions: uint32 `[n_images, n_samples, 2]`.

    Each is a hash of seed, image, granularity and sample index, so it is the same on
    every worker, in every order and in every batch.
    """
    decoding = target.granularity.decoding
    keys = [
        hashlib.blake2b(
            f"{decoding.rng_seed}:{target.fingerprint}:{sample_index}:".encode()
            + image_hash,
            digest_size=8,
        ).digest()
        for image_hash in image_hashes
        for sample_index in range(decoding.n_samples)
    ]
    shape = (len(image_hashes), decoding.n_samples, 2)
    return np.frombuffer(b"".join(keys), "<u4").reshape(shape)


def _answer(
    image_hash: bytes, prompt: str, captions: Sequence[Caption] | ServiceError
) -> Rows | ServiceError:
    if isinstance(captions, ServiceError):
        return captions
    return _rows(image_hash, prompt, captions)


def _rows(image_hash: bytes, prompt: str, captions: Sequence[Caption]) -> Rows:
    return tuple(
        SyntheticCaption(
            image_hash=image_hash,
            prompt_hash=prompt_hash(prompt),
            sample_index=sample_index,
            text=caption.text,
            n_tokens=caption.n_tokens,
            finish_reason=str(caption.finish_reason),
            mean_logprob=caption.mean_logprob,
        )
        for sample_index, caption in enumerate(captions)
    )


def failed_row(image_hash: bytes, prompt: str, error: ValueError) -> SyntheticCaption:
    """The row of a caption that failed; its text is the error."""
    (row,) = _rows(image_hash, prompt, [Caption.failed(str(error))])
    return row
