"""The cross-entropy of student and teacher over prototypes, chunk by chunk.

In: the unit vectors at the bottleneck of both heads. Out: one cross-entropy per token.
The logits (tokens x prototypes) never exist whole: one chunk of tokens of every image
is computed at a time, and again in the backward pass. Both ways to keep the teacher
from collapsing add a bias to its logits, one number per prototype:

    centering    bias = -center / temperature
    Sinkhorn     bias = the potential of the prototypes

Everything works under plain `jit` with a batch that is sharded over devices.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from trainer.models.layers import float32_in_full


class Scores(NamedTuple):
    """Logits in factors: bottleneck @ prototypes / temperature."""

    bottleneck: Float[Array, "b t d"]  # rows of length 1
    prototypes: Float[Array, "d k"]  # columns of length 1
    temperature: Float[Array, ""] | float


class Match(NamedTuple):
    """The student compared with the teacher, in nats. Statistics have no gradient."""

    cross_entropy: Float[Array, "b t"]
    teacher_entropy: Float[Array, ""]  # mean over tokens; 0 to ln k
    n_used_prototypes: Int32[Array, ""]  # that are the teacher's first for some token


def cross_entropy(
    student: Scores,
    teacher: Scores,
    bias: Float[Array, "k"],
    *,
    n_tokens_per_chunk: int,
) -> Match:
    """-sum_k p_k ln q_k of each token of the student, in nats.

    q is the student's softmax over prototypes. p is the softmax of the teacher's logits
    plus `bias`, and has no gradient. `student` has t tokens per image; `teacher` has t
    too, or one that all of them are compared with. Logits are float32; where the
    bottleneck is bfloat16, so are the factors of the logits. `n_tokens_per_chunk`
    tokens of every image are computed at a time.

    Source: Caron et al. 2021 (DINO), arXiv:2104.14294, equation 2, with `bias` from
    `center_bias`.
    """
    teacher, bias = jax.lax.stop_gradient((teacher, bias))

    def compare(student_token, teacher_token):  # one token of every image
        log_q = jax.nn.log_softmax(_logits(student_token, student))
        log_p = jax.nn.log_softmax(_logits(teacher_token, teacher) + bias)
        p = jnp.exp(log_p)
        return -(p * log_q).sum(-1), -(p * log_p).sum(-1), log_p.argmax(-1)

    b, t, _ = student.bottleneck.shape
    targets = jnp.broadcast_to(teacher.bottleneck, (b, t, teacher.bottleneck.shape[-1]))
    nats, entropy, choice = jax.lax.map(
        jax.checkpoint(lambda tokens: compare(*tokens)),
        (_tokens_first(student.bottleneck), _tokens_first(targets)),
        batch_size=n_tokens_per_chunk,
    )
    is_used = jnp.zeros(len(bias), jnp.int32).at[choice].set(1)
    return Match(nats.T, jax.lax.stop_gradient(entropy.mean()), is_used.sum())


def center_bias(
    center: Float[Array, "k"], temperature: Float[Array, ""] | float
) -> Float[Array, "k"]:
    """The bias that makes softmax(l / temperature) softmax((l - center) / temperature).

    `center` is the running mean of the teacher's logits l. No gradient.
    Source: Caron et al. 2021 (DINO), arXiv:2104.14294, section 3.1.
    """
    return -jax.lax.stop_gradient(center) / temperature


def mean_logits(
    bottleneck: Float[Array, "b t d"], prototypes: Float[Array, "d k"]
) -> Float[Array, "k"]:
    """The mean over tokens and images of the logits, before any temperature.

    Logits are linear in the bottleneck, so the mean of the bottleneck is enough. No
    gradient.
    """
    mean = bottleneck.astype(jnp.float32).mean(axis=(0, 1))
    return jax.lax.stop_gradient(mean @ prototypes.astype(jnp.float32))


def update_center(
    center: Float[Array, "k"], logits: Float[Array, "k"], momentum: float
) -> Float[Array, "k"]:
    """The moving average of `mean_logits`; `momentum` is the weight of the old value.

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
    """The bias f with which every prototype gets an equal share of the tokens.

    exp(l_ik) is scaled to equal sums over tokens i for every prototype k, then to equal
    sums over prototypes for every token, `n_iterations` times. With the potentials f
    and g that is

        f_k = ln(n / K) - ln sum_i exp(l_ik + g_i),    g_i = -ln sum_k exp(l_ik + f_k)

    from g = 0, for all n tokens of all images and K prototypes. The last g is the
    normalizer of the softmax itself. No gradient.
    Source: Caron et al. 2020 (SwAV), arXiv:2006.09882; Oquab et al. 2023 (DINOv2),
    arXiv:2304.07193.
    """
    scores = jax.lax.stop_gradient(Scores(bottleneck, prototypes, temperature))
    b, t, _ = bottleneck.shape
    n_prototypes = prototypes.shape[1]
    tokens = _tokens_first(scores.bottleneck)

    def next_bias(bias: Float[Array, "k"] | None) -> Float[Array, "k"]:
        """f from the g of the last f; None stands for g = 0."""

        def add(log_mass, chunk):
            logits = _logits(chunk, scores)
            if bias is not None:
                logits -= jax.nn.logsumexp(logits + bias, axis=-1, keepdims=True)
            return jnp.logaddexp(log_mass, jax.nn.logsumexp(logits, axis=(0, 1)))

        nothing = jnp.full(n_prototypes, -jnp.inf)
        log_masses = _fold_chunks(add, nothing, tokens, n_tokens_per_chunk)
        return math.log(b * t / n_prototypes) - log_masses

    return jax.lax.fori_loop(
        1, n_iterations, lambda _, bias: next_bias(bias), next_bias(None)
    )


def _fold_chunks(
    add: Callable[[Any, Float[Array, "c b d"]], Any],
    start: Float[Array, "k"],
    tokens: Float[Array, "t b d"],
    n_tokens_per_chunk: int,
) -> Float[Array, "k"]:
    """Folds `add` over chunks of tokens, of which the last may be shorter."""
    t, b, d = tokens.shape
    n_whole = t // n_tokens_per_chunk
    whole, rest = jnp.split(tokens, [n_whole * n_tokens_per_chunk])
    chunks = whole.reshape(n_whole, n_tokens_per_chunk, b, d)
    folded, _ = jax.lax.scan(lambda x, chunk: (add(x, chunk), None), start, chunks)
    return add(folded, rest) if len(rest) else folded


def _tokens_first(bottleneck: Float[Array, "b t d"]) -> Float[Array, "t b d"]:
    """Chunks run along tokens, so that a batch sharded over devices stays sharded."""
    return bottleneck.swapaxes(0, 1)


def _logits(bottleneck: Float[Array, "*b d"], scores: Scores) -> Float[Array, "*b k"]:
    with float32_in_full(bottleneck.dtype):
        products = jnp.matmul(
            bottleneck,
            scores.prototypes.astype(bottleneck.dtype),
            preferred_element_type=jnp.float32,
        )
    return products / scores.temperature
