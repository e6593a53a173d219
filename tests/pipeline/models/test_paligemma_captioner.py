import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from pipeline.config.captions import Decoding, Granularity
from pipeline.models.interfaces import Caption
from pipeline.models.paligemma_captioner import PaliGemmaCaptioner
from pipeline.records import FinishReason
from tests.support import tiny_checkpoints

IMAGES = tiny_checkpoints.random_images(5)
PROMPT = "caption en"
GREEDY = Granularity("greedy", "", PROMPT, max_new_tokens=6, batch_size=3)
SAMPLED = dataclasses.replace(
    GREEDY, decoding=Decoding(temperature=1.0, top_p=0.9, n_samples=2)
)
KEYS = np.random.default_rng(0).integers(0, 1 << 32, (len(IMAGES), 2, 2), np.uint32)


@pytest.fixture(scope="module")
def captioner(paligemma_folder: Path) -> PaliGemmaCaptioner:
    return load(paligemma_folder)


def load(folder: Path, **changes: object) -> PaliGemmaCaptioner:
    granularity = dataclasses.replace(GREEDY, checkpoint=str(folder), **changes)
    return PaliGemmaCaptioner.load(granularity)


def captions(
    captioner: PaliGemmaCaptioner, images: np.ndarray, prompt: str = PROMPT
) -> list[Caption]:
    found = captions_of(captioner, images, [prompt] * len(images), GREEDY, KEYS)
    return [caption for (caption,) in found]


def captions_of(
    captioner: PaliGemmaCaptioner,
    images: np.ndarray,
    prompts: list[str],
    granularity: Granularity,
    keys: np.ndarray,
) -> list[tuple[Caption, ...]]:
    keys = keys[: len(images), : granularity.decoding.n_samples]
    return captioner.caption(captioner.encode(images), prompts, granularity, keys)


def test_every_image_gets_its_own_caption(captioner: PaliGemmaCaptioner):
    written = captions(captioner, IMAGES)
    assert len({caption.text for caption in written}) == len(IMAGES)
    assert all(1 <= caption.n_tokens <= GREEDY.max_new_tokens for caption in written)
    assert all(caption.mean_logprob < 0 for caption in written)


def test_a_caption_does_not_depend_on_its_neighbors(captioner: PaliGemmaCaptioner):
    together = captions(captioner, IMAGES)
    assert captions(captioner, IMAGES[::-1]) == together[::-1]
    assert captions(captioner, IMAGES[4:]) == together[4:]


def test_features_serve_several_prompts(captioner: PaliGemmaCaptioner):
    features = captioner.encode(IMAGES)
    for prompt in (PROMPT, "describe en"):
        shared = captioner.caption(features, [prompt] * 5, GREEDY, KEYS[:, :1])
        assert [caption for (caption,) in shared] == captions(captioner, IMAGES, prompt)
    assert captions(captioner, IMAGES, "describe en") != captions(captioner, IMAGES)


def test_prompts_of_other_lengths_in_a_batch_change_nothing(
    captioner: PaliGemmaCaptioner,
):
    prompts = [PROMPT, "a", "two red circles " * 5, PROMPT, "a red circle " * 20]
    mixed = captions_of(captioner, IMAGES, prompts, GREEDY, KEYS)
    alone = [
        captions(captioner, IMAGES[i : i + 1], prompt)
        for i, prompt in enumerate(prompts)
    ]
    assert [list(row) for row in mixed] == alone


def test_a_prompt_that_is_too_long_costs_its_own_captions(
    captioner: PaliGemmaCaptioner,
):
    prompts = [PROMPT] * 4 + ["red circle " * 400]
    *others, (failed,) = captions_of(captioner, IMAGES, prompts, GREEDY, KEYS)
    assert [caption for (caption,) in others] == captions(captioner, IMAGES[:4])
    assert failed.finish_reason == FinishReason.ERROR
    assert failed.text.endswith("tokens: expected at most 512")


def test_samples_depend_on_their_own_key_only(captioner: PaliGemmaCaptioner):
    prompts = [PROMPT] * 5
    pairs = captions_of(captioner, IMAGES, prompts, SAMPLED, KEYS)
    assert len({caption.text for pair in pairs for caption in pair}) == 10
    assert captions_of(captioner, IMAGES, prompts, SAMPLED, KEYS) == pairs
    backwards = captions_of(captioner, IMAGES[::-1], prompts, SAMPLED, KEYS[::-1])
    assert backwards == pairs[::-1]
    others = np.concatenate([KEYS[:2], KEYS[2:] + 1])
    changed = captions_of(captioner, IMAGES, prompts, SAMPLED, others)
    assert changed[:2] == pairs[:2]
    assert changed[2:] != pairs[2:]


def test_one_sample_equals_the_first_of_two(captioner: PaliGemmaCaptioner):
    single = dataclasses.replace(
        SAMPLED, decoding=dataclasses.replace(SAMPLED.decoding, n_samples=1)
    )
    prompts = [PROMPT] * 5
    firsts = captions_of(captioner, IMAGES, prompts, single, KEYS)
    pairs = captions_of(captioner, IMAGES, prompts, SAMPLED, KEYS)
    assert [c.text for (c,) in firsts] == [c.text for c, _ in pairs]


def test_a_tiny_share_of_probability_is_greedy(captioner: PaliGemmaCaptioner):
    decoding = Decoding(temperature=2.0, top_p=1e-6)
    cold = dataclasses.replace(SAMPLED, decoding=decoding)
    found = captions_of(captioner, IMAGES, [PROMPT] * 5, cold, KEYS)
    assert [caption for (caption,) in found] == captions(captioner, IMAGES)


def test_out_of_memory_halves_the_batch_and_says_so(
    paligemma_folder: Path, caplog: pytest.LogCaptureFixture
):
    def texts(captioner: PaliGemmaCaptioner) -> list[str]:
        return [caption.text for caption in captions(captioner, IMAGES)]

    expected = texts(load(paligemma_folder, batch_size=2))
    captioner = load(paligemma_folder, batch_size=4)
    encode, answer = captioner.encode_batch, captioner.answer_batch

    def in_two_rows(work, features, *inputs, **options):
        if len(features) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return work(features, *inputs, **options)

    captioner.answer_batch = functools.partial(in_two_rows, answer)
    assert texts(captioner) == expected
    captioner.batch_size = 4
    captioner.encode_batch = functools.partial(in_two_rows, encode)
    assert texts(captioner) == expected
    message = "out of memory with batches of 4 images: going on with batches of 2"
    assert caplog.messages == [message] * 2


def test_no_images_get_no_captions(captioner: PaliGemmaCaptioner):
    assert captions(captioner, IMAGES[:0]) == []


def test_prompt_is_enclosed_by_start_and_newline(captioner: PaliGemmaCaptioner):
    tokenizer = captioner.tokens.tokenizer
    ids = captioner.tokens.ids("caption en")
    assert tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == ["<bos>", "\n"]
    assert tokenizer.decode(ids[1:-1]) == "caption en"


def test_an_ended_caption_is_without_its_end_token(captioner: PaliGemmaCaptioner):
    words = captioner.tokens.tokenizer("a red circle")["input_ids"]
    ids = np.array([*words, 1, 0, 0])
    caption = captioner.tokens.caption(ids, len(words) + 1, -2.0, True)
    mean_logprob = -2.0 / (len(words) + 1)
    assert caption == Caption(
        "a red circle", len(words) + 1, FinishReason.STOP, mean_logprob
    )


def test_a_cut_caption_says_so(captioner: PaliGemmaCaptioner):
    words = captioner.tokens.tokenizer("a red circle")["input_ids"]
    caption = captioner.tokens.caption(np.array(words), len(words), -1.0, False)
    assert caption.text == "a red circle"
    assert caption.finish_reason == "length"


def test_location_tokens_stay_in_the_text(captioner: PaliGemmaCaptioner):
    ids = captioner.tokens.tokenizer("a<loc0012>")["input_ids"]
    caption = captioner.tokens.caption(np.array(ids), len(ids), -1.0, False)
    assert caption.text == "a<loc0012>"


def test_an_encoder_is_no_captioner(siglip_folder: Path):
    with pytest.raises(ValueError, match="'siglip': expected 'paligemma'"):
        load(siglip_folder)
