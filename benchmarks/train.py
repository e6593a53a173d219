"""Measures the speed of a train step, and its share of the device's peak.

    python -m benchmarks.train --synthetic    # one random batch, made once
    python -m benchmarks.train                # drawn photos through the loader

By default it takes the demo's model on a CPU, and on an accelerator the full TIPSv2
B/14 with the largest batch that fits. As in the trainer, a step runs while the next
batch is fetched; the median time between the ends of two steps counts. Operations per
image are counted from the configuration (`trainer.loop.flops`) and by the compiler,
which counts the body of a loop once, adds recomputation, and may not see inside the
libraries of an accelerator. Prints JSON.
"""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks import input as drawn_input
from recipes import command_line
from trainer import config_files, tokenizer
from trainer.config import TrainConfig
from trainer.data.batch_stream import stream_batches
from trainer.data.batches import ViewSample
from trainer.data.mixture import Mixture
from trainer.data.shards import Shards
from trainer.data.text_tokenizer import Tokenizer
from trainer.distributed import sharding
from trainer.loop import flops
from trainer.step import state
from trainer.step.optimizer import make_optimizer
from trainer.step.train_step import make_train_step

CONFIGS = pathlib.Path(__file__).parent.parent / "trainer" / "configs"
N_WARM_UP_STEPS = 2
N_TRIAL_IMAGES = 16  # on each device, and twice as many, to see what an image takes
SHARE_OF_MEMORY = 0.95


class Step:
    """The train step of a configuration, and its current state."""

    def __init__(self, settings: TrainConfig):
        self.mesh = sharding.make_mesh(settings.compute.n_fsdp)
        self._settings = settings
        self._optimizer = make_optimizer(settings.optimizer, settings.n_steps)
        self.state = state.init_state(settings, self._optimizer, self.mesh)

    def compiled(self, batch_size: int) -> jax.stages.Compiled:
        settings = with_batch_size(self._settings, batch_size)
        step: Any = make_train_step(settings, self._optimizer, self.mesh)
        cut = sharding.batch_sharding(self.mesh)
        batch = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=cut)
            for name, (shape, dtype) in batch_shapes(settings).items()
        }
        shapes = state.abstract_state(settings, self._optimizer, self.mesh)
        return step.lower(shapes, batch).compile()


def with_batch_size(settings: TrainConfig, batch_size: int) -> TrainConfig:
    data = dataclasses.replace(settings.data, batch_size=batch_size)
    return dataclasses.replace(settings, data=data)


def batch_shapes(settings: TrainConfig) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Returns the shapes and types that the step reads from a batch."""
    data, ssl = settings.data, settings.self_supervision
    b, size = data.batch_size, data.global_crop.size_px
    text = ((b, settings.model.text.max_tokens), np.int32)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "alt_text": text,
        "synthetic_caption": text,
        "image": ((b, size, size, 3), np.uint8),
    }
    if ssl.distillation_weight > 0:
        side = data.local_crop.size_px
        shapes["local_crops"] = ((b, data.n_local_crops, side, side, 3), np.uint8)
    if ssl.patch_weight > 0:
        n = size // settings.model.vision.patch_size_px
        shapes["mask"] = ((b, n, n), np.bool_)
    return shapes


def synthetic_batches(settings: TrainConfig, mesh: Mesh) -> Iterator[dict]:
    """Yields the same batch of noise, full texts and random masks forever."""
    rng = np.random.default_rng(0)
    highest = {np.uint8: 256, np.int32: settings.model.text.vocabulary_size}
    batch = {}
    for name, (shape, dtype) in batch_shapes(settings).items():
        if dtype is np.bool_:
            batch[name] = rng.random(shape) < settings.self_supervision.mask_ratio
        else:
            batch[name] = rng.integers(1, highest[dtype], shape, dtype)
    return itertools.repeat(sharding.to_devices(mesh, batch))


def loaded_batches(
    settings: TrainConfig, mesh: Mesh, folder: pathlib.Path
) -> Iterator[dict]:
    """Yields batches of drawn photos, decoded, cropped and transferred every step."""
    n = max(256, settings.data.batch_size)
    drawn_input.write_shards(folder, 256, n)
    shards = Shards(folder)
    model = folder / "tokenizer.model"
    size = min(200, settings.model.text.vocabulary_size)
    model.write_bytes(tokenizer.train_vocabulary(tokenizer.shard_texts(shards), size))
    view = ViewSample(
        Mixture({"drawn": shards}),
        Tokenizer(str(model), settings.model.text.max_tokens),
        dataclasses.replace(settings.data, granularity_weights={"short": 1.0}),
        settings.rng_seed,
        settings.self_supervision,
        settings.model.vision.patch_size_px,
    )
    names = batch_shapes(settings)
    with contextlib.closing(stream_batches(view, settings.run)) as stream:
        for batch in stream:
            yield sharding.to_devices(mesh, {name: batch[name] for name in names})


def step_s(step: Callable, first: dict, batches: Iterable[dict], n_steps: int) -> float:
    """Returns the median time of a step from the state `first`, which is donated."""
    ends, current, previous = [], first, None
    for batch in itertools.islice(batches, N_WARM_UP_STEPS + n_steps):
        current, metrics = step(current, batch)
        jax.block_until_ready(previous)
        ends.append(time.perf_counter())
        previous = metrics
    jax.block_until_ready(previous)
    ends.append(time.perf_counter())
    times = [end - start for start, end in itertools.pairwise(ends)]
    return statistics.median(times[N_WARM_UP_STEPS:])


def matmul_flops_per_s() -> float:
    """Measures one device: the best of ten large products.

    They are in bfloat16, or float32 on a CPU. The numbers are random, since products of
    equal numbers draw less power.
    """
    is_cpu = jax.default_backend() == "cpu"
    n, dtype = (2048, jnp.float32) if is_cpu else (8192, jnp.bfloat16)
    factor = jax.random.normal(jax.random.key(0), (n, n), dtype)
    multiply = jax.jit(lambda x: x @ x)
    times = []
    for _ in range(11):  # the first one compiles
        start = time.perf_counter()
        jax.block_until_ready(multiply(factor))
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)


def compiled_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the peak memory of the program on a device, in bytes."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def largest_batch(bytes_at: Callable[[int], int], limit: int, n_devices: int) -> int:
    """Returns the largest batch that fits `limit` bytes per device.

    The batch is a multiple of eight per device. Memory is assumed to grow by the same
    amount with every image; `bytes_at` returns the bytes per device for a batch. Raises
    ValueError if not even eight fit.
    """
    n = N_TRIAL_IMAGES
    small, large = bytes_at(n * n_devices), bytes_at(2 * n * n_devices)
    of_image = (large - small) / n
    n_fitting = (SHARE_OF_MEMORY * limit - small) / of_image + n
    if n_fitting < 8:
        raise ValueError(f"limit={limit} bytes a device: expected room for 8 images")
    return int(n_fitting) // 8 * 8 * n_devices


def choose_config(flags: Any) -> TrainConfig:
    """Returns the configuration of the flags. Raises ValueError if it does not fit."""
    is_cpu = jax.default_backend() == "cpu"
    path = flags.config or CONFIGS / ("demo.py" if is_cpu else "tipsv2_b14.py")
    settings = config_files.load(path, flags.overrides)
    if flags.steps < 1:
        raise ValueError(f"--steps={flags.steps}: expected 1 or more")
    if flags.batch_size is not None:
        settings = with_batch_size(settings, flags.batch_size)
    mesh = sharding.make_mesh(settings.compute.n_fsdp)
    compute = settings.compute
    sharding.check_batch(mesh, settings.data.batch_size, compute.n_microbatches)
    return settings


def measure(settings: TrainConfig, flags: Any, folder: pathlib.Path) -> dict:
    matmul = matmul_flops_per_s()
    step = Step(settings)
    statistics_of_device = jax.devices()[0].memory_stats() or {}
    if flags.batch_size is None and "bytes_limit" in statistics_of_device:
        batch_size = largest_batch(
            lambda n: compiled_bytes(step.compiled(n)),
            statistics_of_device["bytes_limit"],
            step.mesh.size,
        )
        settings = with_batch_size(settings, batch_size)
    compiled = step.compiled(settings.data.batch_size)
    if flags.synthetic:
        batches = synthetic_batches(settings, step.mesh)
    else:
        batches = loaded_batches(settings, step.mesh, folder)
    seconds = step_s(compiled, step.state, batches, flags.steps)
    return report(settings, compiled, seconds, matmul)


def report(
    settings: TrainConfig,
    compiled: jax.stages.Compiled,
    seconds: float,
    matmul: float,
) -> dict[str, Any]:
    cost, batch_size = flops.step_cost(settings), settings.data.batch_size
    n_devices = cost.n_devices
    speed = cost.flops_per_image * batch_size / n_devices / seconds
    by_compiler = compiled.cost_analysis()["flops"] * n_devices / batch_size
    found = {
        "device": jax.devices()[0].device_kind,
        "n_devices": n_devices,
        "dtype": settings.compute.dtype,
        "batch_size": batch_size,
        "images_per_s": batch_size / seconds,
        "step_s": seconds,
        "gflop_per_image": cost.flops_per_image / 1e9,
        "gflop_per_image_by_compiler": by_compiler / 1e9,
        "tflop_per_s_per_device": speed / 1e12,
        "matmul_tflop_per_s": matmul / 1e12,
        "share_of_matmul": speed / matmul,
        "compiled_mib": compiled_bytes(compiled) / 2**20,
    }
    if cost.peak is not None:
        found |= {"mfu": speed / cost.peak.flops_per_s, "peak": cost.peak.name}
    memory = jax.devices()[0].memory_stats()
    if memory:
        found["device_peak_mib"] = memory["peak_bytes_in_use"] / 2**20
    return found


def main() -> None:
    parser = command_line.Parser(
        prog="python -m benchmarks.train", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--config", metavar="FILE.py", help="of a run of the trainer")
    parser.add_argument("--batch-size", type=int, metavar="N")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="to time")
    parser.add_argument(
        "--synthetic", action="store_true", help="one random batch, without the loader"
    )
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="a.b=value"
    )
    flags = parser.parse_args()
    with command_line.exits(command_line.WRONG_USAGE, ValueError):
        settings = choose_config(flags)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(settings, flags, pathlib.Path(folder))
    rounded = {k: round(v, 4) if type(v) is float else v for k, v in found.items()}
    print(json.dumps({**rounded, "is_synthetic": flags.synthetic}, indent=1))


if __name__ == "__main__":
    main()
