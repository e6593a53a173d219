"""Where arrays lie: batches spread over the local devices, weights whole or cut.

Devices form a grid of `data` and `model`. Every row of it holds the weights once, cut
over its `model` devices, and works on its own share of a batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Self

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

CutAxis = Callable[[str], int | None]  # axis that a parameter is cut along


@dataclasses.dataclass(frozen=True)
class Placement:
    """The grid of all local devices."""

    mesh: Mesh

    @classmethod
    def of(cls, n_model_shards: int = 1) -> Self:
        """Raises ValueError if the devices are no multiple of `n_model_shards`."""
        devices = np.array(jax.local_devices())
        if len(devices) % n_model_shards:
            raise ValueError(
                f"n_model_shards={n_model_shards}: expected a divisor of the number of "
                f"devices, {len(devices)}"
            )
        return cls(Mesh(devices.reshape(-1, n_model_shards), ("data", "model")))

    @property
    def n_batch_shards(self) -> int:
        return self.mesh.shape["data"]

    def rows(self, array: np.ndarray | jax.Array) -> jax.Array:
        """Cuts the first axis over the grid's rows."""
        return jax.device_put(array, self._sharding("data"))

    def weight(self, tensor: np.ndarray, cut_axis: int | None) -> jax.Array:
        """One copy a row of the grid; cut along an axis, or whole on every device."""
        axes = () if cut_axis is None else (*[None] * cut_axis, "model")
        return jax.device_put(tensor, self._sharding(*axes))

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))
