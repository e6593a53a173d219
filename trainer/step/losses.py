"""Losses of the trainer: pure functions, in nats.

Total = 1/2 (c1 + c2) + alpha * distillation + beta * patch. c1 pairs CLS 1 with the alt
text and c2 pairs CLS 2 with the synthetic caption; the other two are means of the
cross-entropies of `trainer.step.prototype_loss` over local crops and over patches.
Source: TIPS, arXiv:2410.16512, section 3; TIPSv2, arXiv:2604.12012.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from trainer.config import (
    ContrastiveLoss,
    PatchLoss,
    PatchReduction,
    SelfSupervisionConfig,
)
from trainer.models.layers import l2_normalize

ALT_TEXT = "contrastive_alt_text"
SYNTHETIC_CAPTION = "contrastive_synthetic_caption"
DISTILLATION = "distillation"
PATCH = "patch"


def info_nce(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    temperature: Float[Array, ""],
    *,
    mesh: Mesh | None = None,
    n_rows_per_chunk: int = 1024,
) -> Float[Array, ""]:
    """Symmetric InfoNCE: the mean over both directions and over the global batch.

    1/2b sum_i [ln sum_j exp(l_ij) + ln sum_j exp(l_ji) - 2 l_ii], where l_ij is the
    cosine of image i and text j divided by `temperature`; rows need not be normalized.
    ln b when nothing is told apart. With a `mesh`, whose axes all cut the batch, each
    device takes its own rows of both directions; either way `n_rows_per_chunk` rows of
    logits exist at a time, in the backward pass too.
    Source: Radford et al. 2021, arXiv:2103.00020, figure 3.
    """

    def sum_of_rows(image, text, gather, temperature):
        def one_way(pair):
            ours, theirs = pair
            rows, columns = ours / temperature, gather(theirs)
            log_sums = _map_rows(
                lambda row: jax.nn.logsumexp(_dot(row, columns)), rows, n_rows_per_chunk
            )
            return (log_sums - (rows * theirs).sum(-1)).sum()

        # In turn, so that the features of one side only are gathered at a time.
        pairs = jnp.stack([image, text]), jnp.stack([text, image])
        return jax.lax.map(jax.checkpoint(one_way), pairs).mean()

    return _mean_over_pairs(sum_of_rows, image, text, (temperature,), mesh)


def sigmoid(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    temperature: Float[Array, ""],
    bias: Float[Array, ""],
    *,
    mesh: Mesh | None = None,
    n_rows_per_chunk: int = 1024,
) -> Float[Array, ""]:
    """Pairwise sigmoid loss, summed over texts and averaged over images.

    -1/b sum_ij ln sigmoid(z_ij l_ij), where l_ij is the cosine of image i and text j
    divided by `temperature`, plus `bias`, and z_ij is 1 on matching pairs, -1
    elsewhere. The same rows, mesh and chunks as in `info_nce`.
    Source: Zhai et al. 2023, arXiv:2303.15343, algorithm 1.
    """

    def sum_of_rows(image, text, gather, temperature, bias):
        rows, columns = image / temperature, gather(text)
        # As if no pair matched; those that do cost softplus(-l) = softplus(l) - l.
        apart = _map_rows(
            lambda row: jax.nn.softplus(_dot(row, columns) + bias).sum(),
            rows,
            n_rows_per_chunk,
        )
        return (apart - (rows * text).sum(-1) - bias).sum()

    return _mean_over_pairs(sum_of_rows, image, text, (temperature, bias), mesh)


def _mean_over_pairs(
    sum_of_rows: Callable[..., Float[Array, ""]],
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    parameters: tuple[Float[Array, ""], ...],
    mesh: Mesh | None,
) -> Float[Array, ""]:
    """Calls `sum_of_rows(image, text, gather, *parameters)` on each device's rows.

    Features arrive there normalized, in float32; `gather` makes all rows of a device's.
    """
    image, text = (l2_normalize(x.astype(jnp.float32)) for x in (image, text))
    if mesh is None:
        return sum_of_rows(image, text, lambda x: x, *parameters) / len(image)
    axes = mesh.axis_names

    def gather(x):
        return jax.lax.all_gather(x, axes, tiled=True)

    def of_device(image, text, *parameters):
        return jax.lax.psum(sum_of_rows(image, text, gather, *parameters), axes)

    rows, whole = PartitionSpec(axes), PartitionSpec()
    specs = (rows, rows, *[whole] * len(parameters))
    cut = jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=whole)
    return cut(image, text, *parameters) / len(image)


def _map_rows(
    function: Callable[[Float[Array, "d"]], Float[Array, ""]],
    rows: Float[Array, "b d"],
    n_rows_per_chunk: int,
) -> Float[Array, "b"]:
    """Chunk by chunk; the backward pass computes each chunk again."""
    return jax.lax.map(jax.checkpoint(function), rows, batch_size=n_rows_per_chunk)


def _dot(row: Float[Array, "d"], columns: Float[Array, "b d"]) -> Float[Array, "b"]:
    return jnp.matmul(row, columns.T, precision=jax.lax.Precision.HIGHEST)


def contrastive_terms(
    cls: Float[Array, "b 2 d"],
    texts: Mapping[str, Float[Array, "b d"]],
    temperatures: Mapping[str, Float[Array, ""]],
    *,
    biases: Mapping[str, Float[Array, ""]] | None = None,
    mesh: Mesh | None = None,
    n_rows_per_chunk: int = 1024,
) -> dict[str, Float[Array, ""]]:
    """One term for each CLS token, with a temperature of its own.

    The loss is `sigmoid` where there are `biases`, and `info_nce` without.
    """
    pairs = {ALT_TEXT: (0, "alt_text"), SYNTHETIC_CAPTION: (1, "synthetic_caption")}
    loss = info_nce if biases is None else sigmoid
    return {
        term: loss(
            cls[:, token],
            texts[kind],
            temperatures[kind],
            *(() if biases is None else (biases[kind],)),
            mesh=mesh,
            n_rows_per_chunk=n_rows_per_chunk,
        )
        for term, (token, kind) in pairs.items()
    }


def distillation_loss(cross_entropy: Float[Array, "b m"]) -> Float[Array, ""]:
    """DINO's term: the mean over images and their local crops.

    `cross_entropy` has CLS 1 of each local crop in the student against CLS 1 of the one
    global crop in the teacher. The papers write a sum over crops; as a mean the weight
    does not hang on their number.
    Source: Caron et al. 2021, arXiv:2104.14294, equation 3.
    """
    return cross_entropy.mean()


def patch_loss(
    cross_entropy: Float[Array, "b p"],
    mask: Bool[Array, "b p"],
    config: SelfSupervisionConfig,
) -> Float[Array, ""]:
    """The term of the patches of the global crop; True in `mask` = hidden.

    iBOT: the mean over each image's masked patches, then over images. iBOT++: over all
    patches alike (MEAN), or (masked + w * visible) / (1 + w) of two such means, where
    w is `visible_weight` (SEPARATE). So chance is the same for all three.
    Source: Zhou et al. 2022 (iBOT), arXiv:2111.07832, section 3; TIPSv2,
    arXiv:2604.12012, equation 4, which sums and leaves the normalizer open.
    """
    masked = mean_where(mask, cross_entropy)
    if config.patch_loss is PatchLoss.IBOT:
        return masked
    if config.patch_reduction is PatchReduction.MEAN:
        return cross_entropy.mean()
    weight = config.visible_weight
    return (masked + weight * mean_where(~mask, cross_entropy)) / (1 + weight)


def mean_where(
    is_counted: Bool[Array, "b p"], values: Float[Array, "b p"]
) -> Float[Array, ""]:
    """The mean of each image's counted values, then of images; 0 for one with none."""
    sums = jnp.where(is_counted, values, 0).sum(axis=1)
    return (sums / jnp.maximum(is_counted.sum(axis=1), 1)).mean()


def chance_levels(
    terms: Iterable[str],
    n_pairs: int,
    n_prototypes: int,
    *,
    contrastive_loss: ContrastiveLoss = ContrastiveLoss.INFO_NCE,
) -> dict[str, float]:
    """What each of `terms` is where nothing is told apart, beside its name.

    ln b for InfoNCE and ln k for prototypes. The sigmoid loss hangs on its bias: at
    the best one, which gives every pair the probability 1/b, it is
    ln b + (b - 1) ln(b / (b - 1)), nearly 1 more than ln b.
    """
    pairs, prototypes = math.log(n_pairs), math.log(n_prototypes)
    if contrastive_loss is ContrastiveLoss.SIGMOID:
        pairs -= (n_pairs - 1) * math.log1p(-1 / n_pairs)
    chance = {
        ALT_TEXT: pairs,
        SYNTHETIC_CAPTION: pairs,
        DISTILLATION: prototypes,
        PATCH: prototypes,
    }
    return {f"{term}_chance": chance[term] for term in terms}


def total_loss(
    terms: Mapping[str, Float[Array, ""]], config: SelfSupervisionConfig
) -> Float[Array, ""]:
    """1/2 (c1 + c2) + alpha * distillation + beta * patch.

    A term whose weight is 0 need not be there.
    """
    return contrastive_loss(terms) + self_supervised_loss(terms, config)


def contrastive_loss(terms: Mapping[str, Float[Array, ""]]) -> Float[Array, ""]:
    """1/2 (c1 + c2)."""
    return (terms[ALT_TEXT] + terms[SYNTHETIC_CAPTION]) / 2


def self_supervised_loss(
    terms: Mapping[str, Float[Array, ""]], config: SelfSupervisionConfig
) -> Float[Array, ""]:
    """alpha * distillation + beta * patch."""
    weights = {
        DISTILLATION: config.distillation_weight,
        PATCH: config.patch_weight,
    }
    wanted = {term: weight for term, weight in weights.items() if weight > 0}
    return sum((w * terms[term] for term, w in wanted.items()), jnp.float32(0))
