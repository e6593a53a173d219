"""KoLeo: each image keeps its distance to its nearest neighbor in the batch.

Source: Sablayrolles et al. 2019, arXiv:1806.03198, equation 2; on CLS tokens as in
DINOv2, Oquab et al. 2023, arXiv:2304.07193, which weighs it by 0.1.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
        return Value(koleo(batch.features[self.view][:, self.token - 1]))

    def flops(self, config: TrainConfig, taught: ModelConfig) -> Forward:
        """The cosines with all images."""
        return Forward(2 * config.data.batch_size * config.model.vision.width, 0)


def koleo(features: Float[Array, "b d"]) -> Float[Array, ""]:
    """-1/b sum_i ln min_j |x_i - x_j| of unit vectors x, in nats.

    `features` need not be normalized. Both ends of a distance have a gradient, and the
    choice of a neighbor has none. Equal rows have the distance `EPSILON` and no
    gradient. A batch of one image gives 0.

    >>> print(f"{koleo(jnp.eye(4, 8)):.4f}")  # -ln sqrt(2)
    -0.3466
    """
    b = len(features)
    x = l2_normalize(features.astype(jnp.float32))
    if b == 1:
        return 0 * x.sum()
    precision = jax.lax.Precision.HIGHEST
    cosines = jnp.matmul(x, x.T, precision=precision)
    others = jnp.where(jnp.eye(b, dtype=bool), -jnp.inf, cosines)
    nearest = jax.lax.stop_gradient(others).argmax(axis=1)
    squares = ((x - x[nearest]) ** 2).sum(axis=1)
    return -jnp.log(squares + EPSILON**2).mean() / 2
