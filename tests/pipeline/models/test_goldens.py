"""Our answers equal those of Hugging Face's PyTorch, token for token."""

from pathlib import Path

import jax
import numpy as np
import pytest

from pipeline.config.captions import Granularity
from pipeline.models.paligemma import Prompt
from pipeline.models.paligemma_captioner import PaliGemmaCaptioner
from tests.support import goldens, tiny_checkpoints

CHECKPOINTS = [
    pytest.param(family, rng_seed, marks=[pytest.mark.slow] if i else [])
    for family in goldens.FAMILIES
    for i, rng_seed in enumerate(goldens.RNG_SEEDS)
]


@pytest.mark.parametrize(("family", "rng_seed"), CHECKPOINTS)
def test_answers_equal_hugging_face(family: str, rng_seed: int, tmp_path: Path):
    tiny_checkpoints.write_paligemma(tmp_path, family, rng_seed)
    captioner = PaliGemmaCaptioner.load(Granularity("", str(tmp_path), batch_size=8))
    expected = goldens.read()[goldens.checkpoint_name(family, rng_seed)]
    assert expected.keys() == {question.name for question in goldens.QUESTIONS}
    for question in goldens.QUESTIONS:
        answers = expected[question.name]
        assert len(np.unique(answers, axis=0)) == 8 * question.n_samples
        np.testing.assert_array_equal(ours(captioner, question), answers)


def ours(captioner: PaliGemmaCaptioner, question: goldens.Question) -> np.ndarray:
    prompts = [captioner.tokens.ids(prompt) for prompt in question.prompts]
    ids = np.zeros((8, 16), np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    answer = captioner.answer_batch(
        captioner.encode(goldens.IMAGES).batches[0],
        Prompt(ids, np.array(list(map(len, prompts)))),
        np.ones(8, bool),
        question.keys,
        max_new_tokens=goldens.N_NEW_TOKENS,
        sampling=question.sampling,
    )
    return jax.device_get(answer.ids)
