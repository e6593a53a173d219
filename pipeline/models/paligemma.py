"""PaliGemma: SigLIP patches, projected, as the first tokens of a Gemma decoder.

In: pixels and prompt ids. Out: logits of an answer, or answers. The sequence is
the image tokens, `<bos>`, the prompt and a newline, which all see each other, then the
answer, which is causal. Prompts are padded on the right to one length; padding is never
read, and positions do not count it. Gemma's family (PaliGemma 1 or 2) comes from the
configuration.

Source: Beyer et al. 2024, arXiv:2407.07726; Steiner et al. 2024, arXiv:2412.03555.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from transformers import PaliGemmaConfig

from pipeline.models.gemma import (
    AnswerCache,
    Cache,
    Gemma,
    GemmaConfig,
    Past,
    Tokens,
)
from pipeline.models.layers import Linear
from pipeline.models.siglip import VisionTower


class Prompt(NamedTuple):
    """`<bos>`, text, newline: ids `[b, t]`, padded right, and their lengths `[b]`."""

    ids: jax.Array
    n_tokens: jax.Array


class Answer(NamedTuple):
    """What `generate` wrote; `b` rows of at most `t` tokens.

    Ids after the end token are 0. `n_tokens` counts the end token, and `logprob` is the
    sum over those tokens, in nats. `has_ended` is False where the answer was cut.
    """

    ids: jax.Array
    n_tokens: jax.Array
    logprob: jax.Array
    has_ended: jax.Array


class Projector(nnx.Module):
    """From the vision tower's width to the decoder's."""

    def __init__(self, config: PaliGemmaConfig, *, rngs: nnx.Rngs):
        width, projected = config.vision_config.hidden_size, config.projection_dim
        self.linear = Linear(width, projected, rngs=rngs)


class PaliGemma(nnx.Module):
    """`dtype` is that of the computation; parameters keep their own.

    `has_own_head` says that logits are not by the token table.
    """

    def __init__(
        self,
        config: PaliGemmaConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        has_own_head: bool = False,
    ):
        gemma_config = GemmaConfig.from_hugging_face(config.text_config)
        if config.projection_dim != gemma_config.width:
            raise ValueError(
                f"projection_dim={config.projection_dim}: expected the decoder's width "
                f"{gemma_config.width}"
            )
        self.vision_tower = VisionTower(config.vision_config, rngs=rngs)
        self.multi_modal_projector = Projector(config, rngs=rngs)
        self.language_model = Gemma(gemma_config, rngs=rngs, has_own_head=has_own_head)
        self.dtype = jnp.dtype(dtype)

    def image_features(self, pixels: jax.Array) -> jax.Array:
        """`[b, s, s, 3]` normalized pixels to `[b, p, d]` decoder inputs."""
        patches = self.vision_tower.patch_tokens(pixels.astype(self.dtype))
        return self.multi_modal_projector.linear(patches)

    def prefix(self, features: jax.Array, prompt: Prompt) -> tuple[jax.Array, Tokens]:
        """Image and prompt as decoder inputs `[b, p + t, d]`.

        Hugging Face's code and ours give image features to the decoder unscaled; the
        original divides them by `sqrt(width)` and multiplies everything by it.
        """
        words = self.language_model.embed(prompt.ids, self.dtype)
        x = jnp.concatenate([features.astype(self.dtype), words], axis=1)
        positions = jnp.broadcast_to(1 + jnp.arange(x.shape[1]), x.shape[:2])
        is_valid = positions <= self._n_prefix(features, prompt)[:, None]
        return x, Tokens(positions, is_prefix=is_valid, is_valid=is_valid)

    def answer_logits(
        self, features: jax.Array, prompt: Prompt, answer_ids: jax.Array
    ) -> jax.Array:
        """Teacher-forced logits, `[b, t]` answer ids to float32 `[b, t, vocab]`.

        Row `i` of the result predicts `answer_ids[:, i]`; it has read the tokens before
        it.
        """
        x, tokens = self.prefix(features, prompt)
        n_prefix = self._n_prefix(features, prompt)
        b, n_answer = answer_ids.shape
        words = self.language_model.embed(answer_ids[:, :-1], self.dtype)
        hidden, _ = self.language_model(
            jnp.concatenate([x, words], axis=1),
            join_tokens(tokens, answer_tokens(n_prefix, n_answer - 1)),
        )
        later = jnp.broadcast_to(
            x.shape[1] + jnp.arange(n_answer - 1), (b, n_answer - 1)
        )
        index = jnp.concatenate([n_prefix[:, None] - 1, later], axis=1)
        chosen = jnp.take_along_axis(hidden, index[..., None], axis=1)
        return self.language_model.logits(chosen)

    def prefill(
        self, features: jax.Array, prompt: Prompt
    ) -> tuple[jax.Array, Cache, Tokens]:
        """Logits of the first answer token, the cache and its tokens."""
        x, tokens = self.prefix(features, prompt)
        hidden, cache = self.language_model(x, tokens)
        n_prefix = self._n_prefix(features, prompt)
        last = jnp.take_along_axis(hidden, n_prefix[:, None, None] - 1, axis=1)[:, 0]
        return self.language_model.logits(last), cache, tokens

    def past(
        self,
        features: jax.Array,
        prompt: Prompt,
        prefix: tuple[Cache, Tokens],
        n_samples: int,
        n_tokens: int,
    ) -> Past:
        """An empty past for answers of `n_tokens`, `n_samples` per image."""
        cache, tokens = prefix
        n_prefix = _repeat_rows(self._n_prefix(features, prompt), n_samples)
        return Past(
            cache,
            Tokens(*(_repeat_rows(part, n_samples) for part in tokens)),
            self.language_model.empty_answer(len(n_prefix), n_tokens, self.dtype),
            answer_tokens(n_prefix, n_tokens),
        )

    def decode(
        self, token_ids: jax.Array, past: Past, slot: jax.Array
    ) -> tuple[jax.Array, AnswerCache]:
        """Reads one token per row, `[q]`, into `slot`; gives the next one's logits."""
        x = self.language_model.embed(token_ids[:, None], self.dtype)
        hidden, answer = self.language_model.read_token(x, past, slot)
        return self.language_model.logits(hidden[:, 0]), answer

    def _n_prefix(self, features: jax.Array, prompt: Prompt) -> jax.Array:
        return features.shape[1] + prompt.n_tokens


def answer_tokens(n_prefix: jax.Array, n_answer: int) -> Tokens:
    """Answer tokens behind `n_prefix` tokens of each row.

    All count as valid: nothing written earlier sees those that are not written yet.
    """
    positions = n_prefix[:, None] + 1 + jnp.arange(n_answer)
    is_true = jnp.ones(positions.shape, bool)
    return Tokens(positions, is_prefix=~is_true, is_valid=is_true)


def join_tokens(first: Tokens, second: Tokens) -> Tokens:
    """The tokens of both, one after the other in each row."""
    pairs = zip(first, second, strict=True)
    return Tokens(*(jnp.concatenate(pair, axis=1) for pair in pairs))


class Sampling(NamedTuple):
    """How tokens are chosen; temperature 0 takes the most likely one.

    `top_p` keeps the likeliest tokens whose probabilities reach it together.
    Source: Holtzman et al. 2020, arXiv:1904.09751.
    """

    temperature: float = 0.0
    top_p: float = 1.0


GREEDY = Sampling()


class _Progress(NamedTuple):
    n_steps: jax.Array
    answer: Answer
    last_ids: jax.Array
    cache: AnswerCache


def generate(
    model: PaliGemma,
    features: jax.Array,
    prompt: Prompt,
    is_row: jax.Array,
    keys: jax.Array,
    *,
    end_id: int,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
) -> Answer:
    """Answers token by token, until all rows have ended; the loop runs on the device.

    Args:
      is_row: boolean `[b]`; rows where it is False are padding and count as ended.
      keys: uint32 `[b, n, 2]`, a random key for each of `n` samples of a row. Samples
        share the prefill of their row.

    Returns:
      `b * n` answers, those of one row together.
    """
    b, n, _ = keys.shape
    logits, prefix, tokens = model.prefill(features, prompt)
    n_read = max(max_new_tokens - 1, 1)  # the last token is not read
    past = model.past(features, prompt, (prefix, tokens), n, n_read)
    choose = functools.partial(
        _append_token, keys=keys.reshape(b * n, 2), end_id=end_id, sampling=sampling
    )

    def step(progress: _Progress) -> _Progress:
        logits, cache = model.decode(
            progress.last_ids,
            past._replace(answer=progress.cache),
            progress.n_steps - 1,
        )
        return choose(progress._replace(cache=cache), logits)

    def is_unfinished(progress: _Progress) -> jax.Array:
        has_room = progress.n_steps < max_new_tokens
        return has_room & ~progress.answer.has_ended.all()

    empty = _start_answer(~_repeat_rows(is_row, n), max_new_tokens)
    none = jnp.zeros(b * n, jnp.int32)
    start = _Progress(jnp.int32(0), empty, none, past.answer)
    first = choose(start, _repeat_rows(logits, n))
    return jax.lax.while_loop(is_unfinished, step, first).answer


def _start_answer(has_ended: jax.Array, max_new_tokens: int) -> Answer:
    return Answer(
        ids=jnp.zeros((len(has_ended), max_new_tokens), jnp.int32),
        n_tokens=jnp.zeros(len(has_ended), jnp.int32),
        logprob=jnp.zeros(len(has_ended), jnp.float32),
        has_ended=has_ended,
    )


def _repeat_rows(x: jax.Array, n: int) -> jax.Array:
    """`[b, ...]` to `[b * n, ...]`, each row `n` times."""
    return x if n == 1 else jnp.repeat(x, n, axis=0)


def _append_token(
    progress: _Progress,
    logits: jax.Array,
    *,
    keys: jax.Array,
    end_id: int,
    sampling: Sampling,
) -> _Progress:
    """Appends the next token of every row that has not ended."""
    answer, i = progress.answer, progress.n_steps
    is_open = ~answer.has_ended
    ids = jnp.where(is_open, next_tokens(logits, keys, i, sampling), 0)
    chosen = jnp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
    logprob = chosen - jax.nn.logsumexp(logits, axis=-1)
    extended = Answer(
        ids=jax.lax.dynamic_update_slice(answer.ids, ids[:, None], (0, i)),
        n_tokens=answer.n_tokens + is_open,
        logprob=answer.logprob + jnp.where(is_open, logprob, 0),
        has_ended=answer.has_ended | (ids == end_id),
    )
    return _Progress(i + 1, extended, ids, progress.cache)


def next_tokens(
    logits: jax.Array, keys: jax.Array, step: jax.Array, sampling: Sampling
) -> jax.Array:
    """The next token of every row, `[b, vocab]` to `[b]`.

    Draws by the Gumbel-max trick: what a row draws depends on its key `[2]` and the
    step alone.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    scaled = keep_likeliest(logits / sampling.temperature, sampling.top_p)
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(
        jax.random.wrap_key_data(keys, impl="threefry2x32"), step
    )
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(step_keys)
    return jnp.argmax(scaled + noise, axis=-1).astype(jnp.int32)


def keep_likeliest(logits: jax.Array, top_p: float) -> jax.Array:
    """Minus infinity in place of all but the tokens that `top_p` keeps."""
    if top_p == 1:
        return logits
    ordered = jnp.sort(logits, axis=-1, descending=True)
    shares = jax.nn.softmax(ordered, axis=-1)
    is_kept = jnp.cumsum(shares, axis=-1) - shares < top_p
    lowest = jnp.where(is_kept, ordered, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits >= lowest, logits, -jnp.inf)
