"""Where arrays are: a mesh of all devices, and shardings of batches and parameters.

The mesh has the axes `data` and `fsdp`. A batch is sharded over both. The devices of
one row of `fsdp` share one copy of parameters, optimizer and teacher, sharded by
`RULES`.
"""

import contextlib
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
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
    return Mesh(arrange_devices(jax.devices(), n_fsdp), BATCH_AXES)


def arrange_devices(devices: Sequence[Any], n_fsdp: int) -> np.ndarray:
    """Returns devices by the axes of the mesh.

    The devices of a row share parameters, which they exchange several times a step: on
    TPUs they are neighbors in the torus, and of one slice. Slices exchange gradients
    alone.
    """
    is_tpu = devices[0].platform == "tpu"
    n_slices = len({getattr(device, "slice_index", 0) for device in devices})
    n_slices = n_slices if is_tpu else 1
    n_devices = len(devices) // n_slices
    if n_devices % n_fsdp:
        of_what = "devices" if n_slices == 1 else "devices of a slice"
        raise ValueError(
            f"compute.n_fsdp={n_fsdp}: expected a divisor of the number of {of_what}, "
            f"{n_devices}"
        )
    shape = (n_devices // n_fsdp, n_fsdp)
    if n_slices == 1:
        return mesh_utils.create_device_mesh(
            shape, devices, allow_split_physical_axes=True
        )
    return mesh_utils.create_hybrid_device_mesh(
        shape, (n_slices, 1), devices, allow_split_physical_axes=True
    )


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


def tracing_for(mesh: Mesh | None) -> AbstractContextManager[None]:
    """Says which mesh the functions that are traced inside run on; see `shard_rows`."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def shard_rows(x: Array) -> Array:
    """Returns `x`, its first axis sharded as that of a batch, and its gradient's too.

    Without this the compiler may rather copy activations to all devices that share
    parameters than gather the parameters. Outside of `tracing_for` it does nothing.
    """
    return _constrain(x, PartitionSpec(BATCH_AXES))


def gather(x: Array) -> Array:
    """Returns `x`, whole on every device, and its gradient's too.

    For what a loop reads in every round: the compiler would gather it there each time.
    """
    return _constrain(x, PartitionSpec())


def _constrain(x: Array, spec: PartitionSpec) -> Array:
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def state_sharding(mesh: Mesh, shapes: Any) -> Any:
    """Returns a sharding for every array of a state, from its path and shape."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, _partition_spec(mesh, join_path(path), leaf.shape)
        ),
        shapes,
    )


def with_places(mesh: Mesh, shapes: Any) -> Any:
    """Returns the shapes of a state, or of a part of it, with their shardings."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        state_sharding(mesh, shapes),
    )


def place_array(values: np.ndarray, place: Sharding) -> Array:
    """Places an array that every process has; each keeps its own part.

    Not with `device_put`: over processes it compares all values.
    """
    return jax.make_array_from_callback(values.shape, place, lambda part: values[part])


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
