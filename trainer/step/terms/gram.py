"""Gram anchoring: the cosines of an image's patches stay near those of an older model.

Source: Siméoni et al. 2025 (DINOv3), arXiv:2508.10104, section 4.2.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from recipes.settings import Settings
from recipes.validation import require_positive
from trainer.config import ModelConfig, TrainConfig
from trainer.models.layers import l2_normalize
from trainer.models.vit import flatten_grid, n_patches, vision_flops
from trainer.step.terms.term import BatchPart, Forward, PartTerm, Place, Value, View


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gram(Settings, PartTerm):
    """Patches of the student's whole view against those of a Gram teacher.

    The Gram teacher is a copy of the student's image encoder, from the start of the run
    and then from every `n_steps_per_copy`-th step. DINOv3 copies its EMA teacher every
    10,000 steps, and weighs the term by 2, in a phase after the main training: start
    from that with `init_from`.
    """

    n_steps_per_copy: int = 10_000

    name = "gram"
    place = Place("terms", "gram")

    def __post_init__(self):
        require_positive(self, "n_steps_per_copy")

    @property
    def views(self) -> frozenset[View]:
        """The whole view."""
        return frozenset({View.WHOLE})

    @property
    def reach(self) -> frozenset[str]:
        """The encoder."""
        return frozenset({"vision"})

    def initial_state(self, params: dict) -> dict:
        """A copy of the image encoder."""
        return jax.tree.map(jnp.copy, params["vision"])

    def next_state(
        self, kept: Any, statistics: Any, params: dict, step: Int32[Array, ""]
    ) -> dict:
        """The same copy, or a new one."""
        is_due = (step + 1) % self.n_steps_per_copy == 0
        return jax.tree.map(
            lambda old, new: jnp.where(is_due, new, old), kept, params["vision"]
        )

    def value(self, part: BatchPart) -> Value:
        """The mean over images."""
        theirs = part.encode_image(part.kept, part.batch["image"]).patches
        ours = part.views.whole.patches
        return Value(gram_distance(flatten_grid(ours), flatten_grid(theirs)))

    def flops(self, config: TrainConfig, taught: ModelConfig) -> Forward:
        """The Gram teacher's pass, and both matrices."""
        vision, size_px = config.model.vision, config.data.global_crop.size_px
        matrix = 2 * n_patches(vision, size_px) ** 2 * vision.width
        return Forward(matrix, matrix + vision_flops(vision, size_px))


def gram_distance(
    student: Float[Array, "b p d"], teacher: Float[Array, "b p d"]
) -> Float[Array, ""]:
    """1/b sum_i |X_i X_i^T - Y_i Y_i^T|^2 / p^2, with the Frobenius norm.

    X and Y are patches of image i of student and teacher as unit rows. The paper does
    not divide by p^2, the number of entries; so the weight does not depend on the size
    of the image. `teacher` has no gradient.

    >>> same, apart = jnp.ones((1, 2, 2)), jnp.eye(2)[None]
    >>> print(f"{gram_distance(same, apart):.4f}")  # two of four entries differ by 1
    0.5000
    """
    ours, theirs = (_cosines(x) for x in (student, jax.lax.stop_gradient(teacher)))
    return ((ours - theirs) ** 2).mean()


def _cosines(patches: Float[Array, "b p d"]) -> Float[Array, "b p p"]:
    x = l2_normalize(patches.astype(jnp.float32))
    return jnp.matmul(x, x.swapaxes(1, 2), precision=jax.lax.Precision.HIGHEST)
