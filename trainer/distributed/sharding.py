"""Where arrays are: a mesh of all devices, and shardings of batches and parameters.

The mesh has the axes `data` and `fsdp`. A batch is sharded over both. The devices of
one row of `fsdp` share one copy of parameters, optimizer and teacher, sharded by
`RULES`.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr

BATCH_AXES = ("data", "fsdp")

# The first rule whose pattern is found in the path of an array says whether it is cut.
# Vectors are small and stay whole; matrices and tables are cut.
RULES: Sequence[tuple[str, bool]] = (
    (r"(step|count)$", False),
    (r"(scale|bias|cls|mask_token|posembed_input)$", False),
    (r"(kernel|emb_var|prototypes)$", True),
    (r"", False),
)


def make_mesh(n_fsdp: int = 1) -> Mesh:
    """Returns a mesh of all devices of all processes.

    Raises ValueError if `n_fsdp` does not divide their number.
    """
    devices = np.array(jax.devices())
    if len(devices) % n_fsdp:
        raise ValueError(
            f"compute.n_fsdp={n_fsdp}: expected a divisor of the number of devices, "
            f"{len(devices)}"
        )
    return Mesh(devices.reshape(-1, n_fsdp), BATCH_AXES)


def check_batch(mesh: Mesh, batch_size: int, n_microbatches: int = 1) -> None:
    """Raises ValueError if a batch cannot be sharded evenly."""
    n_parts = mesh.size * n_microbatches
    if batch_size % n_parts:
        raise ValueError(
            f"data.batch_size={batch_size}: expected a multiple of {n_parts}, which is "
            "the number of devices times compute.n_microbatches"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis sharded over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, shapes: Any) -> Any:
    """Returns a sharding for every array of a state, from its path and shape."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, _partition_spec(mesh, join_path(path), leaf.shape)
        ),
        shapes,
    )


def to_devices(mesh: Mesh, batch: Any) -> Any:
    """Places this process's rows of a batch, a part of the global one, on devices."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch
    )


def join_path(path: tuple) -> str:
    """The path of an array in a nested structure, such as `vision/encoder/cls`."""
    return keystr(path, simple=True, separator="/")


def _partition_spec(mesh: Mesh, path: str, shape: Sequence[int]) -> PartitionSpec:
    """Shards the largest axis that divides evenly, or none."""
    is_cut = next(is_cut for pattern, is_cut in RULES if re.search(pattern, path))
    n_fsdp = mesh.shape["fsdp"]
    even = [axis for axis, size in enumerate(shape) if size % n_fsdp == 0]
    if not is_cut or n_fsdp == 1 or not even:
        return PartitionSpec()
    largest = max(even, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * largest, "fsdp")
