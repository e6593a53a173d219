from pathlib import Path

import numpy as np
import pytest

from pipeline.models.captioners import Caption, FinishReason, PaliGemmaCaptioner
from tests import tiny_checkpoints

IMAGES = tiny_checkpoints.random_images(5)
PROMPT = "caption en"
N_NEW_TOKENS = 6


@pytest.fixture(scope="module")
def captioner(paligemma_folder: Path) -> PaliGemmaCaptioner:
    return PaliGemmaCaptioner.load(str(paligemma_folder), 3, "float32")


def captions(
    captioner: PaliGemmaCaptioner, images: np.ndarray, prompt: str = PROMPT
) -> list[Caption]:
    return captioner.caption(captioner.encode(images), prompt, N_NEW_TOKENS)


def test_every_image_gets_its_own_caption(captioner: PaliGemmaCaptioner):
    written = captions(captioner, IMAGES)
    assert len({caption.text for caption in written}) == len(IMAGES)
    assert all(1 <= caption.n_tokens <= N_NEW_TOKENS for caption in written)
    assert all(caption.mean_logprob < 0 for caption in written)


def test_a_caption_does_not_depend_on_its_neighbours(captioner: PaliGemmaCaptioner):
    together = captions(captioner, IMAGES)
    assert captions(captioner, IMAGES[::-1]) == together[::-1]
    assert captions(captioner, IMAGES[4:]) == together[4:]


def test_features_serve_several_prompts(captioner: PaliGemmaCaptioner):
    features = captioner.encode(IMAGES)
    for prompt in (PROMPT, "describe en"):
        shared = captioner.caption(features, prompt, N_NEW_TOKENS)
        assert shared == captions(captioner, IMAGES, prompt)
    assert captions(captioner, IMAGES, "describe en") != captions(captioner, IMAGES)


def test_a_longer_limit_continues_the_same_captions(captioner: PaliGemmaCaptioner):
    features = captioner.encode(IMAGES)
    short = captioner.caption(features, PROMPT, 2)
    long = captioner.caption(features, PROMPT, N_NEW_TOKENS)
    pairs = zip(long, short, strict=True)
    starts = [caption.text.startswith(start.text) for caption, start in pairs]
    assert sum(starts) >= 4  # a character of several bytes may be cut in two


def test_no_images_get_no_captions(captioner: PaliGemmaCaptioner):
    assert captions(captioner, IMAGES[:0]) == []


def test_prompt_is_enclosed_by_start_and_newline(captioner: PaliGemmaCaptioner):
    tokenizer = captioner.tokens.tokenizer
    ids = captioner.tokens.ids("caption en")
    assert tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == ["<bos>", "\n"]
    assert tokenizer.decode(ids[1:-1]) == "caption en"
    prompt = captioner.tokens.repeated_prompt("caption en", 2)
    assert prompt.ids.shape == (2, 16)
    assert prompt.ids[1].tolist() == ids + [0] * (16 - len(ids))
    assert prompt.n_tokens.tolist() == [len(ids)] * 2


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


def test_a_limit_without_room_is_refused(captioner: PaliGemmaCaptioner):
    with pytest.raises(ValueError, match="max_new_tokens=0: expected at least 1"):
        captioner.caption(captioner.encode(IMAGES), PROMPT, 0)


def test_an_encoder_is_no_captioner(siglip_folder: Path):
    with pytest.raises(ValueError, match="'siglip': expected 'paligemma'"):
        PaliGemmaCaptioner.load(str(siglip_folder), 4, "float32")
