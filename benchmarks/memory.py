"""Reports the compiler's temporary memory of the largest losses and gradients.

    python -m benchmarks.memory

Compiles for 8 virtual CPU devices and runs nothing, so any machine will do; another
compiler fuses differently. Prints MiB per device as JSON: the prototype loss at the
sizes of B/14 with 16 images per device, in chunks and whole, and the contrastive loss
at a global batch of 16,384.
"""

import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from trainer.config import ComputeConfig, HeadConfig, SelfSupervisionConfig
from trainer.step import losses, prototype_loss

N_DEVICES = 8
AXES = ("data", "fsdp")
N_IMAGES = 16 * N_DEVICES
N_TOKENS = 256
N_PAIRS = 16_384
WIDTH = 768


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", N_DEVICES)
    n_rows = ComputeConfig().n_rows_per_chunk
    n_prototypes = SelfSupervisionConfig().n_prototypes_per_chunk
    found = {
        "prototypes, chunked": prototypes_mib(n_prototypes),
        "prototypes, whole": prototypes_mib(None),
        "InfoNCE, chunked": info_nce_mib(n_rows),
        "InfoNCE, chunks of 256": info_nce_mib(256),
    }
    print(json.dumps({name: round(mib) for name, mib in found.items()}, indent=1))


def prototypes_mib(n_prototypes_per_chunk: int | None) -> float:
    """MiB of the cross-entropy and its gradient, for student vectors and prototypes.

    With None, all logits are computed at once.
    """
    head = HeadConfig()
    vectors = (N_IMAGES, N_TOKENS, head.bottleneck_dim)
    matrix = (head.bottleneck_dim, head.n_prototypes)

    def loss(ours, our_prototypes, theirs, their_prototypes, bias):
        student = prototype_loss.Scores(ours, our_prototypes, 0.1)
        teacher = prototype_loss.Scores(theirs, their_prototypes, 0.07)
        if n_prototypes_per_chunk is None:
            return plain_cross_entropy(student, teacher, bias).mean()
        match = prototype_loss.cross_entropy(
            student, teacher, bias, n_prototypes_per_chunk=n_prototypes_per_chunk
        )
        return match.cross_entropy.mean()

    shapes = [(vectors, AXES), (matrix, None), (vectors, AXES), (matrix, None)]
    return _mib(loss, (0, 1), [*shapes, ((head.n_prototypes,), None)])


def plain_cross_entropy(student, teacher, bias):
    """The equation without chunks, with all logits at once."""
    ours, theirs = (
        scores.bottleneck @ scores.prototypes / scores.temperature
        for scores in (student, teacher)
    )
    p = jax.nn.softmax(jax.lax.stop_gradient(theirs + bias))
    return -(p * jax.nn.log_softmax(ours)).sum(-1)


def info_nce_mib(n_rows_per_chunk: int) -> float:
    """MiB of the loss and its gradient, for features and temperature."""

    def loss(image, text, temperature):
        return losses.info_nce(
            image, text, temperature, mesh=_mesh(), n_rows_per_chunk=n_rows_per_chunk
        )

    features = ((N_PAIRS, WIDTH), AXES)
    return _mib(loss, (0, 1, 2), [features, features, ((), None)])


def _mib(
    loss: Callable, argnums: tuple[int, ...], shapes: list[tuple[tuple, object]]
) -> float:
    """MiB of temporaries per device, without arguments and gradients."""
    arguments, shardings = [], []
    for shape, axes in shapes:
        cut = PartitionSpec(axes) if axes else PartitionSpec()
        sharding = NamedSharding(_mesh(), cut)
        shardings.append(sharding)
        arguments.append(jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding))
    out = (
        NamedSharding(_mesh(), PartitionSpec()),
        tuple(shardings[i] for i in argnums),
    )
    step = jax.jit(jax.value_and_grad(loss, argnums), out_shardings=out)
    compiled = step.lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


def _mesh() -> jax.sharding.Mesh:
    shape, kinds = (N_DEVICES // 2, 2), (AxisType.Auto,) * 2
    return jax.make_mesh(shape, AXES, axis_types=kinds)


if __name__ == "__main__":
    main()
