"""The losses: pure functions, in nats.

Those of images and texts, and means of the cross-entropies of
`trainer.step.prototype_loss` over local crops and over patches. `trainer.step.terms`
says what is compared, and the configuration how much each counts.
Source: TIPS, arXiv:2410.16512, section 3; TIPSv2, arXiv:2604.12012.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from trainer.config import PatchLoss, PatchReduction, SelfSupervisionConfig
from trainer.models.layers import l2_normalize


def info_nce(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    temperature: Float[Array, ""],
    *,
    mesh: Mesh | None = None,
    n_rows_per_chunk: int = 1024,
) -> Float[Array, ""]:
    """Symmetric InfoNCE in nats, CLIP's loss: the mean of both directions.

    1/2b sum_i [ln sum_j exp(l_ij) + ln sum_j exp(l_ji) - 2 l_ii], where l_ij is the
    cosine of image i and text j divided by `temperature`. Row i of `image` matches row
    i of `text`; rows need not be normalized. Features that separate nothing give ln b.

    With a `mesh`, whose axes together shard the batch, each device computes its own
    rows of both directions. With or without, `n_rows_per_chunk` rows of logits exist
    at a time, in the backward pass too.

    >>> features = jnp.eye(4, 8)  # four pairs at right angles
    >>> print(f"{info_nce(features, features, jnp.float32(1.0)):.4f}")
    0.7437
    >>> print(f"{info_nce(features, jnp.ones((4, 8)), jnp.float32(1.0)):.4f}")  # ln 4
    1.3863

    Source: Radford et al. 2021, arXiv:2103.00020, figure 3.
    """

    def softmax_loss(row, own, columns, temperature):
        """-ln softmax of its own column: an image among texts, a text among images."""
        row = row / temperature
        return jax.nn.logsumexp(_dot(row, columns)) - (row * own).sum()

    return _mean_over_rows(
        softmax_loss,
        (image, text),
        (temperature,),
        mesh=mesh,
        n_rows_per_chunk=n_rows_per_chunk,
        is_symmetric=True,
    )


def sigmoid(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    temperature: Float[Array, ""],
    bias: Float[Array, ""],
    *,
    mesh: Mesh | None = None,
    n_rows_per_chunk: int = 1024,
) -> Float[Array, ""]:
    """SigLIP's pairwise sigmoid loss in nats, summed over texts, averaged over images.

    -1/b sum_ij ln sigmoid(z_ij l_ij), where l_ij is the cosine of image i and text j
    divided by `temperature`, plus `bias`, and z_ij is 1 on matching pairs, -1
    elsewhere. Rows, mesh and chunks are as in `info_nce`.

    >>> features = jnp.eye(4, 8)  # four pairs at right angles
    >>> loss = sigmoid(features, features, jnp.float32(0.1), jnp.float32(-5.0))
    >>> print(f"{loss:.4f}")  # softplus(-5) for each of the 4 x 4 pairs, over 4 images
    0.0269

    Source: Zhai et al. 2023, arXiv:2303.15343, algorithm 1.
    """

    def sigmoid_loss(row, own, columns, temperature, bias):
        """The sum over texts of softplus(l), or of softplus(-l) for its own text."""
        row = row / temperature
        own_logit = (row * own).sum() + bias
        # softplus(-l) = softplus(l) - l
        return jax.nn.softplus(_dot(row, columns) + bias).sum() - own_logit

    return _mean_over_rows(
        sigmoid_loss,
        (image, text),
        (temperature, bias),
        mesh=mesh,
        n_rows_per_chunk=n_rows_per_chunk,
        is_symmetric=False,
    )


def _mean_over_rows(
    row_loss: Callable[..., Float[Array, ""]],
    features: tuple[Float[Array, "b d"], Float[Array, "b d"]],
    parameters: tuple[Float[Array, ""], ...],
    *,
    mesh: Mesh | None,
    n_rows_per_chunk: int,
    is_symmetric: bool,
) -> Float[Array, ""]:
    """The mean of `row_loss(row, its own column, all columns, *parameters)`.

    Rows are images and columns texts; if the loss is symmetric, it is the mean of that
    and of texts as rows. Features arrive there normalized, in float32.
    """
    image, text = (l2_normalize(x.astype(jnp.float32)) for x in features)

    def sum_over_rows(image, text, parameters, gather):
        def one_way(pair):
            rows, own = pair
            columns = gather(own)
            losses = _map_rows(
                lambda row_and_own: row_loss(*row_and_own, columns, *parameters),
                (rows, own),
                n_rows_per_chunk,
            )
            return losses.sum()

        if not is_symmetric:
            return one_way((image, text))
        # In turn, so that the features of one side only are gathered at a time.
        pairs = jnp.stack([image, text]), jnp.stack([text, image])
        return jax.lax.map(jax.checkpoint(one_way), pairs).mean()

    if mesh is None:
        return sum_over_rows(image, text, parameters, lambda x: x) / len(image)
    axes = mesh.axis_names

    def sum_over_devices(image, text, *parameters):
        def gather(x):
            return jax.lax.all_gather(x, axes, tiled=True)

        return jax.lax.psum(sum_over_rows(image, text, parameters, gather), axes)

    sharded, whole = PartitionSpec(axes), PartitionSpec()
    specs = (sharded, sharded, *[whole] * len(parameters))
    total = jax.shard_map(sum_over_devices, mesh=mesh, in_specs=specs, out_specs=whole)
    return total(image, text, *parameters) / len(image)


def _map_rows(
    function: Callable[..., Float[Array, ""]],
    rows: tuple[Float[Array, "b d"], ...],
    n_rows_per_chunk: int,
) -> Float[Array, "b"]:
    """Maps chunk by chunk; the backward pass computes each chunk again."""
    return jax.lax.map(jax.checkpoint(function), rows, batch_size=n_rows_per_chunk)


def _dot(row: Float[Array, "d"], columns: Float[Array, "b d"]) -> Float[Array, "b"]:
    return jnp.matmul(row, columns.T, precision=jax.lax.Precision.HIGHEST)


def distillation_loss(cross_entropy: Float[Array, "b m"]) -> Float[Array, ""]:
    """DINO's term: the mean over images and their local crops.

    `cross_entropy` compares CLS 1 of each local crop in the student with CLS 1 of the
    global crop in the teacher. The papers write a sum over crops. With a mean, the
    weight of the term does not depend on their number.
    Source: Caron et al. 2021, arXiv:2104.14294, equation 3.
    """
    return cross_entropy.mean()


def patch_loss(
    cross_entropy: Float[Array, "b p"],
    mask: Bool[Array, "b p"],
    config: SelfSupervisionConfig,
) -> Float[Array, ""]:
    """The term of the patches of the global crop; True in `mask` means hidden.

    iBOT: the mean over each image's masked patches, then over images. iBOT++: the mean
    over all patches (MEAN), or (masked + w * visible) / (1 + w), where masked and
    visible are two means like iBOT's and w is `visible_weight` (SEPARATE). The chance
    level, ln of the number of prototypes, is the same for all three.
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
    """The mean over each image's counted values, then over images.

    An image without a counted value contributes 0.
    """
    sums = jnp.where(is_counted, values, 0).sum(axis=1)
    return (sums / jnp.maximum(is_counted.sum(axis=1), 1)).mean()
