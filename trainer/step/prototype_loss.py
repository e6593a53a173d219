"""Cross-entropy of student and teacher over prototypes, chunk by chunk.

In go the unit vectors at the bottleneck of both heads, out comes one cross-entropy for
each token. The logits (tokens x prototypes) never exist whole: a chunk of tokens of
every image is computed at a time, and again in the backward pass. Both ways to keep the
teacher from collapsing are a bias of its softmax, one number for each prototype:

    centering    bias = -center / temperature
    Sinkhorn    bias = the potential of the prototypes

Everything works under plain `jit` with a batch that is cut over devices.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from trainer.models.layers import float32_in_full


class Scores(NamedTuple):
    """Logits as the factors bottleneck @ prototypes / temperature."""

    bottleneck: Float[Array, "b t d"]  # rows of length 1
    prototypes: Float[Array, "d k"]  # columns of length 1
    temperature: Float[Array, ""] | float


class Match(NamedTuple):
    """How the student meets the teacher, in nats; statistics have no gradient."""

    cross_entropy: Float[Array, "b t"]
    teacher_entropy: Float[Array, ""]  # mean over tokens; 0 to ln k
    n_used_prototypes: Int32[Array, ""]  # the teacher's first choice for some token


def cross_entropy(
    student: Scores,
    teacher: Scores,
    bias: Float[Array, "k"],
    *,
    n_tokens_per_chunk: int,
) -> Match:
    """-sum_k p_k ln q_k of each token, where q is the student's softmax.

    p = softmax(the teacher's logits + `bias`), without a gradient. One token of the
    teacher stands for all of the student's. Logits are float32; where the bottleneck
    is bfloat16 their factors are, too.
    Source: Caron et al. 2021, arXiv:2104.14294, equation 2, where `bias` is centering.
    """
    teacher, bias = jax.lax.stop_gradient((teacher, bias))
    b, t, _ = student.bottleneck.shape
    targets = jnp.broadcast_to(teacher.bottleneck, (b, t, teacher.bottleneck.shape[-1]))

    def of_token(token):  # of every image
        log_q = jax.nn.log_softmax(_logits(token[0], student))
        log_p = jax.nn.log_softmax(_logits(token[1], teacher) + bias)
        p = jnp.exp(log_p)
        return -(p * log_q).sum(-1), -(p * log_p).sum(-1), log_p.argmax(-1)

    found, entropy, choice = jax.lax.map(
        jax.checkpoint(of_token),
        (_tokens_first(student.bottleneck), _tokens_first(targets)),
        batch_size=n_tokens_per_chunk,
    )
    is_used = jnp.zeros(len(bias), jnp.int32).at[choice].set(1)
    return Match(found.T, jax.lax.stop_gradient(entropy.mean()), is_used.sum())


def center_bias(
    center: Float[Array, "k"], temperature: Float[Array, ""] | float
) -> Float[Array, "k"]:
    """softmax((l - center) / temperature) as a bias of l / temperature."""
    return -jax.lax.stop_gradient(center) / temperature


def mean_logits(
    bottleneck: Float[Array, "b t d"], prototypes: Float[Array, "d k"]
) -> Float[Array, "k"]:
    """The mean over tokens and images of the logits, before any temperature.

    Logits are linear in the bottleneck, so its mean is enough. No gradient.
    """
    mean = bottleneck.astype(jnp.float32).mean(axis=(0, 1))
    return jax.lax.stop_gradient(mean @ prototypes.astype(jnp.float32))


def update_center(
    center: Float[Array, "k"], logits: Float[Array, "k"], momentum: float
) -> Float[Array, "k"]:
    """The moving average of `mean_logits`; `momentum` weighs the old value.

    Source: Caron et al. 2021, arXiv:2104.14294, equation 4.
    """
    return momentum * center + (1 - momentum) * logits


def sinkhorn_bias(
    bottleneck: Float[Array, "b t d"],
    prototypes: Float[Array, "d k"],
    temperature: Float[Array, ""] | float,
    *,
    n_tokens_per_chunk: int,
    n_iterations: int = 3,
) -> Float[Array, "k"]:
    """The bias f under which all prototypes share the tokens alike.

    exp(l_ik) is scaled in turn to equal sums of columns (prototypes) and of rows
    (tokens), `n_iterations` times. With the potentials f and g that is

        f_k = ln(n / k) - ln sum_i exp(l_ik + g_i),    g_i = -ln sum_k exp(l_ik + f_k)

    from g = 0, for n tokens. The last g is what a softmax divides by. All tokens of all
    images take part. No gradient.
    Source: Caron et al. 2020 (SwAV), arXiv:2006.09882; Oquab et al. 2023 (DINOv2),
    arXiv:2304.07193.
    """
    scores = jax.lax.stop_gradient(Scores(bottleneck, prototypes, temperature))
    b, t, _ = bottleneck.shape
    n_prototypes = prototypes.shape[1]
    tokens = _tokens_first(scores.bottleneck)

    def log_masses(bias: Float[Array, "k"] | None) -> Float[Array, "k"]:
        def add(log_mass, chunk):
            logits = _logits(chunk, scores)
            if bias is not None:
                logits -= jax.nn.logsumexp(logits + bias, axis=-1, keepdims=True)
            return jnp.logaddexp(log_mass, jax.nn.logsumexp(logits, axis=(0, 1)))

        nothing = jnp.full(n_prototypes, -jnp.inf)
        return _fold_chunks(add, nothing, tokens, n_tokens_per_chunk)

    def bias_after(bias: Float[Array, "k"] | None) -> Float[Array, "k"]:
        return math.log(b * t / n_prototypes) - log_masses(bias)

    return jax.lax.fori_loop(
        1, n_iterations, lambda _, bias: bias_after(bias), bias_after(None)
    )


def _fold_chunks(
    add: Callable[[Any, Float[Array, "c b d"]], Any],
    start: Float[Array, "k"],
    tokens: Float[Array, "t b d"],
    n_tokens_per_chunk: int,
) -> Float[Array, "k"]:
    """`add`s one chunk of tokens after the other; the last one may be shorter."""
    t, b, d = tokens.shape
    n_whole = t // n_tokens_per_chunk
    whole, rest = jnp.split(tokens, [n_whole * n_tokens_per_chunk])
    chunks = whole.reshape(n_whole, n_tokens_per_chunk, b, d)
    folded, _ = jax.lax.scan(lambda x, chunk: (add(x, chunk), None), start, chunks)
    return add(folded, rest) if len(rest) else folded


def _tokens_first(bottleneck: Float[Array, "b t d"]) -> Float[Array, "t b d"]:
    """Chunks go along tokens, so that a batch cut over devices stays cut."""
    return bottleneck.swapaxes(0, 1)


def _logits(bottleneck: Float[Array, "*b d"], scores: Scores) -> Float[Array, "*b k"]:
    with float32_in_full(bottleneck.dtype):
        products = jnp.matmul(
            bottleneck,
            scores.prototypes.astype(bottleneck.dtype),
            preferred_element_type=jnp.float32,
        )
    return products / scores.temperature
