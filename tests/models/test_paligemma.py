import functools

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
    greedy_answer,
    joined,
)
from tests import tiny_checkpoints

N_NEW_TOKENS = 8
NO_END = -1
PROMPT = Prompt(
    np.array([[2, 70, 71, 5, 0], [2, 70, 5, 0, 0], [2, 80, 81, 82, 5]]),
    np.array([4, 3, 5]),
)
ALL_ROWS = np.ones(3, bool)


@pytest.fixture(scope="module", params=["gemma", "gemma2"])
def model(request: pytest.FixtureRequest) -> PaliGemma:
    config = tiny_checkpoints.paligemma_config(request.param)
    module = PaliGemma(config, rngs=nnx.Rngs(0))
    graph, _ = nnx.split(module)
    return nnx.merge(graph, tiny_checkpoints.randomised(module, 0))


def features(model: PaliGemma) -> jax.Array:
    return model.image_features(tiny_checkpoints.random_images(3) / 127.5 - 1)


def answered(model: PaliGemma, prompt: Prompt = PROMPT, **changes: object) -> Answer:
    graph, params = nnx.split(model)
    options = {"end_id": NO_END, "max_new_tokens": N_NEW_TOKENS, "is_row": ALL_ROWS}
    options |= changes
    is_row = options.pop("is_row")

    @jax.jit
    def run(params: nnx.State, images: jax.Array) -> Answer:
        return greedy_answer(
            nnx.merge(graph, params), images, prompt, is_row, **options
        )

    return jax.device_get(run(params, features(model)))


def test_cached_decoding_equals_the_uncached_argmax_loop(model: PaliGemma):
    ids = np.zeros((3, N_NEW_TOKENS), int)
    for i in range(N_NEW_TOKENS):
        # The tokens from `i` on are not read by row `i` of the logits.
        logits = model.answer_logits(features(model), PROMPT, ids)
        ids[:, i] = logits[:, i].argmax(-1)
    answer = answered(model)
    assert len(np.unique(ids, axis=0)) == 3
    np.testing.assert_array_equal(answer.ids, ids)
    logprobs = jax.nn.log_softmax(logits).max(-1).sum(-1)
    np.testing.assert_allclose(answer.logprob, logprobs, atol=1e-4)


def first_layer_keys(
    model: PaliGemma, prompt_token: int, answer_token: int
) -> jax.Array:
    """Keys that layers 0 and 1 compute for the first image token."""
    prompt = PROMPT._replace(ids=PROMPT.ids.copy())
    prompt.ids[:, 1] = prompt_token
    images = features(model)
    x, prefix = model.prefix(images, prompt)
    answer = model.language_model.embed(np.full((3, 1), answer_token), x.dtype)
    tokens = joined(prefix, answer_tokens(images.shape[1] + prompt.n_tokens, 1))
    _, cache = model.language_model(jnp.concatenate([x, answer], axis=1), tokens)
    return jnp.stack([layer.keys[:, 0] for layer in cache[:2]])


def test_image_tokens_read_the_prompt_but_not_the_answer(model: PaliGemma):
    keys = first_layer_keys(model, prompt_token=70, answer_token=90)
    other_prompt = first_layer_keys(model, prompt_token=71, answer_token=90)
    other_answer = first_layer_keys(model, prompt_token=70, answer_token=91)
    np.testing.assert_array_equal(keys[0], other_prompt[0])
    assert np.abs(keys[1] - other_prompt[1]).max() > 1e-3
    np.testing.assert_array_equal(keys, other_answer)


def test_padding_of_the_prompt_changes_nothing(model: PaliGemma):
    longer = PROMPT._replace(ids=np.pad(PROMPT.ids, ((0, 0), (0, 6))))
    short, long = answered(model), answered(model, longer)
    np.testing.assert_array_equal(short.ids, long.ids)
    np.testing.assert_allclose(short.logprob, long.logprob, atol=1e-4)


def test_content_of_the_padding_changes_nothing(model: PaliGemma):
    other = np.where(np.arange(5) < PROMPT.n_tokens[:, None], PROMPT.ids, 99)
    expected = answered(model)
    np.testing.assert_array_equal(
        answered(model, PROMPT._replace(ids=other)).ids, expected.ids
    )


def test_an_end_token_stops_its_row_only(model: PaliGemma):
    free = answered(model)
    end_id = int(free.ids[0, 2])
    stopped = answered(model, end_id=end_id)
    for row in range(3):
        where = np.flatnonzero(free.ids[row] == end_id)
        n = where[0] + 1 if len(where) else N_NEW_TOKENS
        assert (stopped.n_tokens[row], stopped.has_ended[row]) == (n, len(where) > 0)
        np.testing.assert_array_equal(stopped.ids[row, :n], free.ids[row, :n])
        assert not stopped.ids[row, n:].any()
    assert stopped.n_tokens[0] <= 3


def test_padding_rows_are_empty_and_do_not_hold_up_the_loop(model: PaliGemma):
    is_row = np.array([True, False, False])
    end_id = int(answered(model).ids[0, 0])
    answer = answered(model, is_row=is_row, end_id=end_id)
    assert answer.n_tokens.tolist() == [1, 0, 0]
    assert answer.logprob[1:].tolist() == [0, 0]


def test_the_loop_stops_when_all_rows_have_ended(
    model: PaliGemma, monkeypatch: pytest.MonkeyPatch
):
    steps = []
    decode = PaliGemma.decode

    @functools.wraps(decode)
    def counted(*args: object) -> object:
        jax.debug.callback(lambda: steps.append(1))
        return decode(*args)

    monkeypatch.setattr(PaliGemma, "decode", counted)
    end_id = int(answered(model).ids[0, 2])
    jax.effects_barrier()
    assert len(steps) == N_NEW_TOKENS - 1
    steps.clear()
    only_first = np.array([True, False, False])
    n_tokens = answered(model, is_row=only_first, end_id=end_id).n_tokens[0]
    jax.effects_barrier()
    assert len(steps) == n_tokens - 1 < N_NEW_TOKENS - 1


def test_one_new_token_needs_no_decoding(model: PaliGemma):
    expected = answered(model).ids[:, :1]
    np.testing.assert_array_equal(answered(model, max_new_tokens=1).ids, expected)


def test_every_parameter_gets_a_gradient(model: PaliGemma):
    graph, params = nnx.split(model)
    images = tiny_checkpoints.random_images(3) / 127.5 - 1
    ids = np.array([[90, 91, 1], [92, 1, 0], [93, 94, 1]])

    def loss(params: nnx.State) -> jax.Array:
        model = nnx.merge(graph, params)
        logits = model.answer_logits(model.image_features(images), PROMPT, ids)
        return -jnp.take_along_axis(
            jax.nn.log_softmax(logits), ids[..., None], -1
        ).sum()

    grads = nnx.to_flat_state(jax.jit(jax.grad(loss))(params))
    assert all(np.isfinite(leaf[...]).all() for _, leaf in grads)
    assert [path for path, leaf in grads if not np.any(leaf[...])] == []


def test_an_untied_head_is_refused():
    config = tiny_checkpoints.paligemma_config("gemma")
    config.tie_word_embeddings = False
    with pytest.raises(ValueError, match="tie_word_embeddings=false: expected"):
        PaliGemma(config, rngs=nnx.Rngs(0))


def test_a_projector_of_another_width_is_refused():
    config = tiny_checkpoints.paligemma_config("gemma")
    config.projection_dim = 31
    with pytest.raises(ValueError, match="projection_dim=31: expected"):
        PaliGemma(config, rngs=nnx.Rngs(0))
