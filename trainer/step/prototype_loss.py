"""The cross-entropy of student and teacher over prototypes, chunk by chunk.

In: the unit vectors at the bottleneck of both heads. Out: one cross-entropy per token.
The logits (tokens x prototypes) never exist whole: those of one chunk of prototypes are
computed at a time, with an online softmax, and again in the backward pass. Both ways to
keep the teacher from collapsing add a bias to its logits, one number per prototype:

    centering    bias = -center / temperature
    Sinkhorn     bias = the potential of the prototypes

Everything works under plain `jit` with a batch that is sharded over devices.
Source of the online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from trainer.models.layers import float32_in_full

LOWEST = -1e30  # a logit whose exponential is 0, and whose product with 0 is


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
    n_prototypes_per_chunk: int,
) -> Match:
    """-sum_k p_k ln q_k of each token of the student, in nats.

    q is the student's softmax over prototypes. p is the softmax of the teacher's logits
    plus `bias`, and has no gradient. `student` has t tokens per image; `teacher` has t
    too, or one that all of them are compared with. Logits are float32; where the
    bottleneck is bfloat16, so are the factors of the logits and of the gradients.

    Source: Caron et al. 2021 (DINO), arXiv:2104.14294, equation 2, with `bias` from
    `center_bias`.
    """
    student, teacher = (
        side._replace(temperature=jnp.float32(side.temperature))
        for side in (student, teacher)
    )
    size = min(n_prototypes_per_chunk, len(bias))
    nats, entropy, choice = _compare(size, student, teacher, bias)
    is_used = jnp.zeros(len(bias), jnp.int32).at[choice].set(1)
    return Match(nats, entropy.mean(), is_used.sum())


class Softmax(NamedTuple):
    """A softmax over the prototypes so far: sum_k exp(l_k) = exp(highest) * total."""

    highest: Float[Array, "b t"]
    total: Float[Array, "b t"]

    def add(
        self, logits: Float[Array, "b t k"]
    ) -> tuple["Softmax", Float[Array, "b t k"], Float[Array, "b t"]]:
        """Returns it with further prototypes, their exponentials over exp(highest), and
        the factor of sums of earlier ones."""
        highest = jnp.maximum(self.highest, logits.max(axis=-1))
        masses = jnp.exp(logits - highest[..., None])
        shrink = jnp.exp(self.highest - highest)
        return Softmax(highest, self.total * shrink + masses.sum(-1)), masses, shrink

    def log_total(self) -> Float[Array, "b t"]:
        """ln sum_k exp(l_k)."""
        return self.highest + jnp.log(self.total)


class _Chunk(NamedTuple):
    """A part of the prototypes; what is missing at the end has the bias `LOWEST`."""

    student: Float[Array, "n d k"]
    teacher: Float[Array, "n d k"]
    student_bias: Float[Array, "n k"]
    teacher_bias: Float[Array, "n k"]
    first: Int32[Array, "n"]  # its number


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _compare(
    size: int, student: Scores, teacher: Scores, bias: Float[Array, "k"]
) -> tuple[Float[Array, "b t"], Float[Array, "b t2"], Int32[Array, "b t2"]]:
    """Cross-entropies, entropies of the teacher, and its first prototypes."""
    return _compare_forward(size, student, teacher, bias)[0]


def _compare_forward(
    size: int, student: Scores, teacher: Scores, bias: Float[Array, "k"]
) -> tuple[tuple, tuple]:
    def add(sums: tuple, chunk: _Chunk) -> tuple[tuple, None]:
        q, p, mixed, own, choice = sums
        logits = _logits(student, chunk.student) + chunk.student_bias
        targets = _logits(teacher, chunk.teacher) + chunk.teacher_bias
        first = jnp.argmax(targets, axis=-1) + chunk.first
        choice = jnp.where(targets.max(axis=-1) > p.highest, first, choice)
        q, *_ = q.add(logits)
        p, masses, shrink = p.add(targets)
        mixed = mixed * shrink + (masses * logits).sum(axis=-1)
        own = own * shrink + (masses * targets).sum(axis=-1)
        return (q, p, mixed, own, choice), None

    ours, theirs = (side.bottleneck.shape[:2] for side in (student, teacher))
    nothing = (
        _no_softmax(ours),
        _no_softmax(theirs),
        jnp.zeros(ours),
        jnp.zeros(theirs),
        jnp.zeros(theirs, jnp.int32),
    )
    chunks = _chunks(size, student, teacher, bias)
    (q, p, mixed, own, choice), _ = jax.lax.scan(add, nothing, chunks)
    log_q, log_p = q.log_total(), p.log_total()
    found = log_q - mixed / p.total, log_p - own / p.total, choice
    return found, (student, teacher, bias, log_q, log_p)


def _compare_backward(size: int, kept: tuple, slopes: tuple) -> tuple:
    """The gradient of the student alone, from the slopes of the cross-entropies."""
    student, teacher, bias, log_q, log_p = kept
    x, kernel, temperature = student
    slope = (slopes[0] / temperature)[..., None]

    def add(
        dx: Float[Array, "b t d"], chunk: _Chunk
    ) -> tuple[Float[Array, "b t d"], Float[Array, "d k"]]:
        logits = _logits(student, chunk.student) + chunk.student_bias
        targets = _logits(teacher, chunk.teacher) + chunk.teacher_bias
        q, p = jnp.exp(logits - log_q[..., None]), jnp.exp(targets - log_p[..., None])
        dlogits = (slope * (q - p)).astype(x.dtype)
        dx += _sums("btk,dk->btd", dlogits, chunk.student)
        return dx, _sums("btd,btk->dk", x, dlogits)

    nothing = jnp.zeros(x.shape, jnp.float32)
    chunks = _chunks(size, student, teacher, bias)
    dx, dkernels = jax.lax.scan(add, nothing, chunks)
    dkernel = dkernels.swapaxes(0, 1).reshape(len(kernel), -1)[:, : kernel.shape[1]]
    # The logits are the products over the temperature.
    dtemperature = -(dx * x).sum() / temperature
    found = Scores(dx.astype(x.dtype), dkernel.astype(kernel.dtype), dtemperature)
    return found, None, None


_compare.defvjp(_compare_forward, _compare_backward)


def _chunks(
    size: int, student: Scores, teacher: Scores, bias: Float[Array, "k"]
) -> _Chunk:
    """All chunks, `size` prototypes each."""
    n_missing = -len(bias) % size

    def cut(x: Float[Array, "*d k"], filling: float = 0) -> Float[Array, "n *d k2"]:
        widths = [(0, 0)] * (x.ndim - 1) + [(0, n_missing)]
        x = jnp.pad(x, widths, constant_values=filling)
        return jnp.moveaxis(x.reshape(*x.shape[:-1], -1, size), -2, 0)

    return _Chunk(
        cut(_prototypes(student)),
        cut(_prototypes(teacher)),
        cut(jnp.zeros_like(bias), LOWEST),
        cut(bias, LOWEST),
        jnp.arange(0, len(bias), size, dtype=jnp.int32),
    )


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
    n_prototypes_per_chunk: int,
    n_iterations: int = 3,
) -> Float[Array, "k"]:
    """The bias f with which every prototype gets an equal share of the tokens.

    exp(l_ik) is scaled to equal sums over tokens i for every prototype k, then to equal
    sums over prototypes for every token, `n_iterations` times. With the potentials f
    and g that is

        f_k = ln(n / K) - ln sum_i exp(l_ik + g_i),    g_i = -ln sum_k exp(l_ik + f_k)

    from g = 0, for all n tokens of all images and K prototypes. The last g is the
    normalizer of the softmax itself. Logits are computed anew in each iteration. No
    gradient.
    Source: Caron et al. 2020 (SwAV), arXiv:2006.09882; Oquab et al. 2023 (DINOv2),
    arXiv:2304.07193.
    """
    scores = jax.lax.stop_gradient(Scores(bottleneck, prototypes, temperature))
    n_tokens, n_prototypes = math.prod(bottleneck.shape[:2]), prototypes.shape[1]
    size = min(n_prototypes_per_chunk, n_prototypes)
    chunks = _chunks(size, scores, scores, jnp.zeros(n_prototypes))

    def iterate(g: Float[Array, "b t"]) -> tuple[Softmax, Float[Array, "k"]]:
        """The softmax whose logarithm is -g of the next f, and that f."""

        def add(
            normalizer: Softmax, chunk: _Chunk
        ) -> tuple[Softmax, Float[Array, "k"]]:
            logits = _logits(scores, chunk.teacher)
            log_masses = jax.nn.logsumexp(logits + g[..., None], axis=(0, 1))
            f = math.log(n_tokens / n_prototypes) - log_masses + chunk.teacher_bias
            return normalizer.add(logits + f)[0], f

        normalizer, f = jax.lax.scan(add, _no_softmax(g.shape), chunks)
        return normalizer, f.reshape(-1)[:n_prototypes]

    g = jax.lax.fori_loop(
        1,
        n_iterations,
        lambda _, g: -iterate(g)[0].log_total(),
        jnp.zeros(bottleneck.shape[:2]),
    )
    return iterate(g)[1]


def _no_softmax(shape: tuple[int, ...]) -> Softmax:
    return Softmax(jnp.full(shape, LOWEST), jnp.zeros(shape))


def _logits(scores: Scores, chunk: Float[Array, "d k"]) -> Float[Array, "b t k"]:
    """The logits of all tokens for some prototypes."""
    return _sums("btd,dk->btk", scores.bottleneck, chunk) / scores.temperature


def _prototypes(scores: Scores) -> Float[Array, "d k"]:
    """In the type of the vectors that they are multiplied with."""
    return scores.prototypes.astype(scores.bottleneck.dtype)


def _sums(
    spec: str, x: Float[Array, "..."], y: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Products of factors of one type with sums in float32."""
    with float32_in_full(x.dtype):
        return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)
