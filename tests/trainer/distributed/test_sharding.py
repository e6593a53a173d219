"""Which devices share parameters: neighbors of one slice."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.distributed import sharding


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU as JAX describes it."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    core_on_chip: int = 0
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5"


def slice_of(*sides: int, number: int = 0) -> list[Chip]:
    places = itertools.product(*map(range, reversed(sides)))
    first = number * int(np.prod(sides))
    return [Chip(first + i, xyz[::-1], number) for i, xyz in enumerate(places)]


def test_devices_that_share_parameters_are_a_ring_of_the_torus():
    rows = sharding.arrange_devices(slice_of(4, 8, 4), n_fsdp=8)
    assert rows.shape == (16, 8)
    for row in rows:
        assert len({(chip.coords[0], chip.coords[2]) for chip in row}) == 1


def test_slices_share_no_parameters():
    chips = slice_of(2, 2, 4, number=0) + slice_of(2, 2, 4, number=1)
    rows = sharding.arrange_devices(chips, n_fsdp=4)
    assert rows.shape == (8, 4)
    assert all(len({chip.slice_index for chip in row}) == 1 for row in rows)
    assert len({chip.id for chip in rows.flat}) == 32


@pytest.mark.parametrize(
    ("n_slices", "message"),
    [
        (1, "compute.n_fsdp=3: expected a divisor of the number of devices, 16"),
        (
            2,
            "compute.n_fsdp=3: expected a divisor of the number of devices of a slice, "
            "16",
        ),
    ],
)
def test_devices_that_cannot_share_evenly_are_refused(n_slices, message):
    chips = [
        chip for number in range(n_slices) for chip in slice_of(2, 2, 4, number=number)
    ]
    with pytest.raises(ValueError, match=f"^{message}$"):
        sharding.arrange_devices(chips, n_fsdp=3)


def test_without_a_mesh_activations_are_left_alone():
    x = jnp.ones((4, 2))
    for constrain in (sharding.shard_rows, sharding.gather):
        assert "sharding_constraint" not in str(jax.make_jaxpr(constrain)(x))
        with sharding.tracing_for(None):
            assert constrain(x) is x
        with sharding.tracing_for(sharding.make_mesh()):
            assert "sharding_constraint" in str(jax.make_jaxpr(constrain)(x))
