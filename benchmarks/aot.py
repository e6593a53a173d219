"""Compiles train steps for TPUs that are not there, and reads what they would do.

    python -m benchmarks.aot --recipe tipsv2_g14 [--set a.b=value]...

Needs the extra [aot], which brings the TPU compiler. Nothing runs: the numbers are the
compiler's. For a slice of TPUs, and the images that the recipe gives each of its chips,
prints as JSON what a chip sends in a step, by kind, the memory that the program takes,
and an estimate of the time:

    computation    the compiler's `estimated_cycles`, added up, at the chip's clock
    exchanges      what is sent, by the rate of the links of one axis of the torus

Neither knows how well they overlap, nor what waits for memory beyond what the compiler
models, so the estimate has two ends: with exchanges wholly hidden, and not at all. A
kernel of Pallas has no estimate, and counts for nothing: with one, the time is too low.

Layers are compiled as a loop, whether or not the recipe does so, and few of them: the
rounds of the loop are counted as those of the recipe. The memory is that of the recipe
as it is, compiled with less effort, which takes a quarter of the time.
"""

import collections
import dataclasses
import importlib
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from benchmarks import hlo
from benchmarks.train import CONFIGS, batch_shapes, compiled_bytes
from recipes import command_line
from trainer import config_files
from trainer.config import Ema, ModelConfig, TrainConfig
from trainer.distributed import sharding
from trainer.loop import flops
from trainer.step.optimizer import make_optimizer
from trainer.step.state import abstract_state
from trainer.step.train_step import make_train_step

# A slice of TPU v5p for each recipe: as many chips as the papers name, where they do.
RECIPES = {
    "tips_b14": "v5p:4x8x8",
    "tips_g14": "v5p:8x8x8",
    "tips_g14_highres": "v5p:8x8x8",
    "tipsv2_b14": "v5p:4x8x8",
    "tipsv2_g14": "v5p:8x8x8",
    "tipsv2_g14_highres": "v5p:8x8x8",
    "tipsv2_l14_distilled": "v5p:4x8x8",
}


FEW_LAYERS = (3, 5)  # of both encoders: numbers of rounds that no other loop has


@dataclasses.dataclass(frozen=True)
class Chip:
    """What an estimate needs to know of a TPU."""

    clock_hz: float
    link_bytes_per_s: float  # of one axis of the torus, in both directions together
    memory_bytes: float


# Google Cloud's page "TPU v5p": 459 TFLOP/s in bfloat16, 95 GB, 4,800 Gbit/s between
# chips over the three axes. 8 units of 128 x 128 give the peak at this clock.
V5P = Chip(clock_hz=1.75e9, link_bytes_per_s=200e9, memory_bytes=95e9)


def teacher_of(config: TrainConfig) -> ModelConfig | None:
    """Returns the model that teaches in distillation: TIPSv2 g/14, as in the paper."""
    if config.self_supervision.ema is not Ema.FROZEN:
        return None
    return importlib.import_module("trainer.configs.tipsv2_g14").get_config().model


def chips_of(topology: str) -> Sequence[Any]:
    """Returns the devices of a slice of TPUs, such as `v5p:8x8x8`."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no TPU to ask
    return topologies.get_topology_desc(topology, platform="tpu").devices


def compile_step(
    config: TrainConfig, topology: str, effort: float = 0.0
) -> jax.stages.Compiled:
    """Compiles the train step for a slice of TPUs.

    With an effort of -1 the exchanges, the types and nearly the memory are the same,
    and the estimated cycles mean nothing.
    """
    chips = sharding.arrange_devices(chips_of(topology), config.compute.n_fsdp)
    mesh = Mesh(chips, sharding.BATCH_AXES)
    optimizer = make_optimizer(config.optimizer, config.n_steps)
    teacher = teacher_of(config)
    cut = sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=cut)
        for name, (shape, dtype) in batch_shapes(config).items()
    }
    step: Any = make_train_step(config, optimizer, mesh, teacher)
    lowered = step.lower(abstract_state(config, optimizer, mesh, teacher), batch)
    options = {"exec_time_optimization_effort": effort} if effort else {}
    return lowered.compile(compiler_options=options)


def sent_gb(program: str, rounds: hlo.Rounds | None = None) -> dict[str, float]:
    """Returns what a chip sends in a step, by kind of exchange."""
    found: collections.defaultdict[str, float] = collections.defaultdict(float)
    for one in hlo.collectives(program, rounds):
        found[one.kind] += one.sent_bytes / 1e9
    return dict(found)


def compute_s(program: str, rounds: hlo.Rounds | None = None) -> dict[str, float]:
    """Returns the compiler's estimate of the time of a chip's own work, by part."""
    found: collections.defaultdict[str, float] = collections.defaultdict(float)
    for one in hlo.operations(program, rounds):
        seconds = one.n_runs * one.estimated_cycles / V5P.clock_hz
        found[_part(one.path)] += seconds
    return dict(found)


def _part(path: str) -> str:
    """The part of the model that an operation belongs to."""
    parts = {
        "contrastive": r"\)/shard_map",
        "attention": "bhq|bhk|attention|softmax|shard_map",
        "prototypes": "vmap",
        "other products": "dot_general",
    }
    names = (name for name, pattern in parts.items() if re.search(pattern, path))
    return next(names, "the rest")


def read_step(config: TrainConfig, topology: str) -> dict[str, float]:
    """Returns what a chip sends (GB), takes (s) and holds (GB), each by its name."""
    few = with_layers(config, *FEW_LAYERS)
    few = dataclasses.replace(
        few, compute=dataclasses.replace(few.compute, scan_layers=True)
    )
    program = compile_step(few, topology).as_text()
    n_layers = config.model.vision.n_layers, config.model.text.n_layers
    rounds = dict(zip(FEW_LAYERS, n_layers, strict=True))
    sent, taken = sent_gb(program, rounds), compute_s(program, rounds)
    return {
        **{f"sent_gb {kind}": n for kind, n in sent.items()},
        **{f"estimated_s {part}": n for part, n in taken.items()},
        "memory_gb": compiled_bytes(compile_step(config, topology, effort=-1)) / 1e9,
    }


def with_layers(config: TrainConfig, n_vision: int, n_text: int) -> TrainConfig:
    """Returns the configuration with other depths of both encoders."""
    model = dataclasses.replace(
        config.model,
        vision=dataclasses.replace(config.model.vision, n_layers=n_vision),
        text=dataclasses.replace(config.model.text, n_layers=n_text),
    )
    return dataclasses.replace(config, model=model)


def estimate(
    config: TrainConfig, topology: str, found: dict[str, float]
) -> dict[str, float]:
    """Adds totals, and the MFU at both ends, to what `read_step` found."""
    n_images = config.data.batch_size / len(chips_of(topology))
    n_flops = n_images * flops.flops_per_image(config, teacher_of(config))
    ideal_s = n_flops / flops.PEAKS["TPU v5p"].flops_per_s
    sent, own_s = (
        sum(value for name, value in found.items() if name.startswith(start))
        for start in ("sent_gb", "estimated_s")
    )
    exchange_s = sent * 1e9 / V5P.link_bytes_per_s
    return {
        "images_per_chip": n_images,
        "tflop_per_chip": n_flops / 1e12,
        **found,
        "sent_gb": sent,
        "estimated_s": own_s,
        "exchange_s": exchange_s,
        "mfu_if_hidden": ideal_s / max(own_s, exchange_s),
        "mfu_if_not": ideal_s / (own_s + exchange_s),
    }


def main() -> None:
    parser = command_line.Parser(
        prog="python -m benchmarks.aot", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--recipe", choices=RECIPES, required=True)
    parser.add_argument("--topology", help="by default that of the recipe")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="a.b=value"
    )
    flags = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    with command_line.exits(command_line.WRONG_USAGE, ValueError):
        config = config_files.load(CONFIGS / f"{flags.recipe}.py", flags.overrides)
    topology = flags.topology or RECIPES[flags.recipe]
    found = estimate(config, topology, read_step(config, topology))
    rounded = {name: round(value, 4) for name, value in found.items()}
    print(json.dumps({"topology": topology, **rounded}, indent=1))


if __name__ == "__main__":
    main()
