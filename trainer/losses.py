"""Losses of the trainer: pure functions, in nats.

Total = 1/2 (c1 + c2), where c1 pairs CLS 1 with the alt text and c2 pairs CLS 2 with
the synthetic caption. The self-supervised terms join in `total`, as
1/2 (c1 + c2) + alpha * distillation + beta * patch with alpha = 1 and beta = 2, each a
pure function of this module beside `info_nce`.
Source: TIPS, arXiv:2410.16512, section 3; TIPSv2, arXiv:2604.12012.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ALT_TEXT = "contrastive_alt_text"
SYNTHETIC_CAPTION = "contrastive_synthetic_caption"


def info_nce(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    temperature: Float[Array, ""],
) -> Float[Array, ""]:
    """Symmetric InfoNCE: the mean over both directions and over the batch.

    Row i of `image` matches row i of `text`; rows need not be normalised, since
    logits are cosines divided by `temperature`. ln b when nothing is told apart.
    Source: Radford et al. 2021, arXiv:2103.00020, figure 3.
    """
    cosines = jnp.matmul(
        l2_normalise(image), l2_normalise(text).T, precision=jax.lax.Precision.HIGHEST
    )
    logits = cosines / temperature
    matching = jnp.diagonal(logits)
    to_text = jax.nn.logsumexp(logits, axis=1) - matching
    to_image = jax.nn.logsumexp(logits, axis=0) - matching
    return (to_text.mean() + to_image.mean()) / 2


def contrastive_terms(
    cls: Float[Array, "b 2 d"],
    texts: Mapping[str, Float[Array, "b d"]],
    temperatures: Mapping[str, Float[Array, ""]],
) -> dict[str, Float[Array, ""]]:
    """One term for each CLS token, with a temperature of its own."""
    pairs = {ALT_TEXT: (0, "alt_text"), SYNTHETIC_CAPTION: (1, "synthetic_caption")}
    return {
        term: info_nce(cls[:, token], texts[kind], temperatures[kind])
        for term, (token, kind) in pairs.items()
    }


def chance_levels(n_pairs: int) -> dict[str, float]:
    """What each term is for features that tell nothing apart, beside its name."""
    terms = (ALT_TEXT, SYNTHETIC_CAPTION)
    return {f"{term}_chance": math.log(n_pairs) for term in terms}


def total(terms: Mapping[str, Float[Array, ""]]) -> Float[Array, ""]:
    """1/2 (c1 + c2)."""
    return (terms[ALT_TEXT] + terms[SYNTHETIC_CAPTION]) / 2


def l2_normalise(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Rows of length 1; a row of zeros stays zero, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum((x**2).sum(-1, keepdims=True), 1e-12))
