"""KoLeo: each image keeps its distance to its nearest neighbor in the batch.

Source: Sablayrolles et al. 2019, arXiv:1806.03198, equation 2; on CLS tokens as in
DINOv2, Oquab et al. 2023, arXiv:2304.07193, which weighs it by 0.1.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int32

from recipes.settings import Settings
from trainer.config import ModelConfig, TrainConfig
from trainer.models.layers import l2_normalize
from trainer.step.terms.term import BatchTerm, Forward, Value, View, WholeBatch

EPSILON = 1e-8  # of a distance; two equal images have this one


@dataclasses.dataclass(frozen=True, kw_only=True)
class KoLeo(Settings, BatchTerm):
    """A CLS token of a view of the global crop, against those of the other images."""

    token: int = 1  # or 2
    view: View = View.WHOLE  # or MASKED

    name = "koleo"

    def __post_init__(self):
        for field, known in (("token", (1, 2)), ("view", (View.WHOLE, View.MASKED))):
            value = getattr(self, field)
            if value not in known:
                expected = " or ".join(map(str, known))
                raise ValueError(f"{field}={value}: expected {expected}")

    @property
    def views(self) -> frozenset[View]:
        """The view whose token is spread."""
        return frozenset({self.view})

    @property
    def reach(self) -> frozenset[str]:
        """The encoder."""
        return frozenset({"vision"})

    def value(self, batch: WholeBatch) -> Value:
        """The mean over the images of the whole batch."""
        features = batch.features[self.view][:, self.token - 1]
        n_rows = batch.n_rows_per_chunk
        return Value(koleo(features, mesh=batch.mesh, n_rows_per_chunk=n_rows))

    def flops(self, config: TrainConfig, taught: ModelConfig) -> Forward:
        """The cosines with all images."""
        return Forward(2 * config.data.batch_size * config.model.vision.width, 0)


def koleo(
    features: Float[Array, "b d"],
    *,
    mesh: Mesh | None = None,
    n_rows_per_chunk: int = 1024,
) -> Float[Array, ""]:
    """-1/b sum_i ln min_j |x_i - x_j| of unit vectors x, in nats.

    `features` need not be normalized. Both ends of a distance have a gradient, and the
    choice of a neighbor has none. Equal rows have the distance `EPSILON` and no
    gradient. A batch of one image gives 0.

    With a `mesh`, whose axes together shard the batch, each device searches for the
    neighbors of its own rows. `n_rows_per_chunk` rows of cosines exist at a time.

    >>> print(f"{koleo(jnp.eye(4, 8)):.4f}")  # -ln sqrt(2)
    -0.3466
    """
    b = len(features)
    x = l2_normalize(features.astype(jnp.float32))
    if b == 1:
        return 0 * x.sum()
    nearest = _nearest(jax.lax.stop_gradient(x), mesh, n_rows_per_chunk)
    squares = ((x - x[nearest]) ** 2).sum(axis=1)
    return -jnp.log(squares + EPSILON**2).mean() / 2


def _nearest(
    x: Float[Array, "b d"], mesh: Mesh | None, n_rows_per_chunk: int
) -> Int32[Array, "b"]:
    """The number of the row nearest to each row, itself apart."""

    def search(
        rows: Float[Array, "n d"], first: Int32[Array, ""] | int
    ) -> Int32[Array, "n"]:
        """For the rows from number `first` on."""
        columns = rows if mesh is None else jax.lax.all_gather(rows, axes, tiled=True)

        def of_row(pair: tuple) -> Int32[Array, ""]:
            row, number = pair
            cosines = jnp.matmul(columns, row, precision=jax.lax.Precision.HIGHEST)
            is_own = jnp.arange(len(columns)) == number
            return jnp.where(is_own, -jnp.inf, cosines).argmax()

        numbers = first + jnp.arange(len(rows))
        return jax.lax.map(of_row, (rows, numbers), batch_size=n_rows_per_chunk)

    if mesh is None:
        return search(x, 0)
    axes = mesh.axis_names

    def search_on_device(rows: Float[Array, "n d"]) -> Int32[Array, "n"]:
        return search(rows, jax.lax.axis_index(axes) * len(rows))

    rows = PartitionSpec(axes)
    return jax.shard_map(search_on_device, mesh=mesh, in_specs=rows, out_specs=rows)(x)
