import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pipeline.models.paligemma import (
    Answer,
    PaliGemma,
    Prompt,
    answer_tokens,
    generate,
    join_tokens,
)
from tests.support import tiny_checkpoints

T = TypeVar("T")

N_NEW_TOKENS = 8
NO_END = -1
PROMPT = Prompt(
    np.array([[2, 70, 71, 5, 0], [2, 70, 5, 0, 0], [2, 80, 81, 82, 5]]),
    np.array([4, 3, 5]),
)
ALL_ROWS = np.ones(3, bool)


IMAGES = tiny_checkpoints.random_images(3) / 127.5 - 1


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A tiny model as jitted functions, so that each is compiled once."""

    graph: nnx.GraphDef[PaliGemma]
    params: nnx.State

    def features(self) -> jax.Array:
        return self._run(PaliGemma.image_features, IMAGES)

    def logits(self, answer_ids: np.ndarray) -> jax.Array:
        return self._run(PaliGemma.answer_logits, self.features(), PROMPT, answer_ids)

    def keys(self, prompt: Prompt, answer_ids: np.ndarray) -> jax.Array:
        return self._run(image_keys, self.features(), prompt, answer_ids)

    def answer(
        self,
        prompt: Prompt = PROMPT,
        is_row: np.ndarray = ALL_ROWS,
        end_id: int = NO_END,
        max_new_tokens: int = N_NEW_TOKENS,
    ) -> Answer:
        inputs = (self.features(), prompt, is_row, end_id)
        answer = self._run(GREEDY[max_new_tokens], *inputs)
        return jax.device_get(answer)

    def _run(self, function: Callable[..., T], *inputs: object) -> T:
        return _jitted(function, self.graph)(self.params, *inputs)


@functools.cache
def _jitted(
    function: Callable[..., T], graph: nnx.GraphDef[PaliGemma]
) -> Callable[..., T]:
    return jax.jit(lambda params, *inputs: function(nnx.merge(graph, params), *inputs))


def greedy(max_new_tokens: int) -> Callable[..., Answer]:
    def run(model, features, prompt, is_row, end_id):
        return generate(
            model,
            features,
            prompt,
            is_row,
            np.zeros((len(is_row), 1, 2), np.uint32),
            end_id=end_id,
            max_new_tokens=max_new_tokens,
        )

    return run


GREEDY = {n: greedy(n) for n in (1, N_NEW_TOKENS)}


def image_keys(
    model: PaliGemma, features: jax.Array, prompt: Prompt, answer_ids: jax.Array
) -> jax.Array:
    """Keys of the first image token in layers 0 and 1, `[2, b, n_kv_heads, d]`."""
    x, prefix = model.prefix(features, prompt)
    words = model.language_model.embed(answer_ids, x.dtype)
    answer = answer_tokens(features.shape[1] + prompt.n_tokens, answer_ids.shape[1])
    _, cache = model.language_model(
        jnp.concatenate([x, words], axis=1), join_tokens(prefix, answer)
    )
    return jnp.stack([layer.keys[..., 0] for layer in cache[:2]])


@pytest.fixture(scope="module", params=["gemma", "gemma2"])
def model(request: pytest.FixtureRequest) -> Compiled:
    config = tiny_checkpoints.paligemma_config(request.param)
    module = PaliGemma(config, rngs=nnx.Rngs(0))
    graph, _ = nnx.split(module)
    return Compiled(graph, tiny_checkpoints.randomized(module, 0))


def test_cached_decoding_equals_the_uncached_argmax_loop(model: Compiled):
    ids = np.zeros((3, N_NEW_TOKENS), int)
    for i in range(N_NEW_TOKENS):
        # Row `i` of the logits has not read the tokens from `i` on.
        logits = model.logits(ids)
        ids[:, i] = logits[:, i].argmax(-1)
    answer = model.answer()
    assert len(np.unique(ids, axis=0)) == 3
    np.testing.assert_array_equal(answer.ids, ids)
    logprobs = jax.nn.log_softmax(logits).max(-1).sum(-1)
    np.testing.assert_allclose(answer.logprob, logprobs, atol=1e-4)


def test_image_tokens_read_the_prompt_but_not_the_answer(model: Compiled):
    other_ids = PROMPT.ids.copy()
    other_ids[:, 1] += 1
    answer_ids = np.full((3, 1), 90)
    keys = model.keys(PROMPT, answer_ids)
    other_prompt = model.keys(PROMPT._replace(ids=other_ids), answer_ids)
    np.testing.assert_array_equal(keys[0], other_prompt[0])
    assert np.abs(keys[1] - other_prompt[1]).max() > 1e-3
    np.testing.assert_array_equal(keys, model.keys(PROMPT, answer_ids + 1))


def test_padding_of_the_prompt_changes_nothing(model: Compiled):
    longer = PROMPT._replace(ids=np.pad(PROMPT.ids, ((0, 0), (0, 6))))
    short, long = model.answer(), model.answer(longer)
    np.testing.assert_array_equal(short.ids, long.ids)
    np.testing.assert_allclose(short.logprob, long.logprob, atol=1e-4)


def test_content_of_the_padding_changes_nothing(model: Compiled):
    other = np.where(np.arange(5) < PROMPT.n_tokens[:, None], PROMPT.ids, 99)
    answer = model.answer(PROMPT._replace(ids=other))
    np.testing.assert_array_equal(answer.ids, model.answer().ids)


def test_an_end_token_stops_its_row_only(model: Compiled):
    free = model.answer()
    end_id = int(free.ids[0, 2])
    stopped = model.answer(end_id=end_id)
    for row in range(3):
        where = np.flatnonzero(free.ids[row] == end_id)
        n = where[0] + 1 if len(where) else N_NEW_TOKENS
        assert (stopped.n_tokens[row], stopped.has_ended[row]) == (n, len(where) > 0)
        np.testing.assert_array_equal(stopped.ids[row, :n], free.ids[row, :n])
        assert not stopped.ids[row, n:].any()
    assert stopped.n_tokens[0] <= 3


def test_padding_rows_are_empty(model: Compiled):
    is_row = np.array([True, False, False])
    answer = model.answer(is_row=is_row)
    assert answer.n_tokens.tolist() == [N_NEW_TOKENS, 0, 0]
    assert answer.logprob[1:].tolist() == [0, 0]
    np.testing.assert_array_equal(answer.ids[0], model.answer().ids[0])


def test_the_loop_stops_when_all_rows_have_ended(
    model: Compiled, monkeypatch: pytest.MonkeyPatch
):
    steps = []
    decode = PaliGemma.decode

    def counted(*inputs: object) -> object:
        jax.debug.callback(lambda: steps.append(1))
        return decode(*inputs)

    monkeypatch.setattr(PaliGemma, "decode", counted)
    monkeypatch.setitem(GREEDY, N_NEW_TOKENS, greedy(N_NEW_TOKENS))
    end_id = int(model.answer().ids[0, 2])
    jax.effects_barrier()
    assert len(steps) == N_NEW_TOKENS - 1
    steps.clear()
    only_first = np.array([True, False, False])
    n_tokens = model.answer(is_row=only_first, end_id=end_id).n_tokens[0]
    jax.effects_barrier()
    assert len(steps) == n_tokens - 1 < N_NEW_TOKENS - 1


def test_one_new_token_needs_no_decoding(model: Compiled):
    expected = model.answer().ids[:, :1]
    np.testing.assert_array_equal(model.answer(max_new_tokens=1).ids, expected)


def test_every_parameter_gets_a_gradient(model: Compiled):
    ids = np.array([[90, 91, 1], [92, 1, 0], [93, 94, 1]])

    def loss(params: nnx.State) -> jax.Array:
        whole = nnx.merge(model.graph, params)
        logits = whole.answer_logits(whole.image_features(IMAGES), PROMPT, ids)
        return -jnp.take_along_axis(
            jax.nn.log_softmax(logits), ids[..., None], -1
        ).sum()

    grads = nnx.to_flat_state(jax.jit(jax.grad(loss))(model.params))
    leaves = [(path, np.asarray(leaf[...])) for path, leaf in grads]
    assert all(np.isfinite(leaf).all() for _, leaf in leaves)
    assert [path for path, leaf in leaves if not leaf.any()] == []


def test_a_projector_of_another_width_is_refused():
    config = tiny_checkpoints.paligemma_config("gemma")
    config.projection_dim = 31
    with pytest.raises(ValueError, match="projection_dim=31: expected"):
        PaliGemma(config, rngs=nnx.Rngs(0))
