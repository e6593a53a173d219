"""Keys of stochastic depth: chance hangs on seed, step, sample and view.

So it is the same with any mesh, any number of microbatches, and after a resume.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, Key, UInt8


def sample_keys(
    rng_seed: int, step: Int32[Array, ""], sample_ids: UInt8[Array, "b 16"]
) -> Key[Array, "b"]:
    """Returns a key for each sample of a step."""
    key = jax.random.fold_in(jax.random.key(rng_seed), step)
    words = jax.lax.bitcast_convert_type(
        sample_ids.reshape(len(sample_ids), -1, 4), jnp.uint32
    )

    def fold(row: Array) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.fold_in(key, row[0]), row[1])

    return jax.vmap(fold)(words)


def view_keys(keys: Key[Array, "b"], views: Sequence[int]) -> Key[Array, "bv"]:
    """Returns a key for each view of each sample; the views of a sample are adjacent.

    `views` are numbers, one for each view that a model encodes.
    """
    folded = [jax.vmap(jax.random.fold_in, (0, None))(keys, view) for view in views]
    return jnp.stack(folded, axis=1).reshape(-1)
