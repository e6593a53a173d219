"""Measures the memory that a run takes to start, to resume, and to start from weights.

    python -m benchmarks.start_memory

On a CPU the memory of devices is that of the host, so the peak of the process, less
what it held before, is that of both together. Eight virtual devices share the state of
a TIPSv2 of the size L/14. Prints JSON: the state in MB, and each peak as a multiple
of it.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import TypeVar

SIZE = {"width": 1024, "n_heads": 16, "mlp_dim": 4096}  # of L/14
OVERRIDES = [
    "compute.n_fsdp=8",
    "model.vision.n_layers=24",
    *(
        f"model.{tower}.{k}={v}"
        for tower in ("vision", "text")
        for k, v in SIZE.items()
    ),
]
T = TypeVar("T")
CASES = ("start", "resume", "init_from")


def measure(case: str, folder: pathlib.Path) -> dict[str, float]:
    """Runs one case in this process; `start` leaves the checkpoint of the others."""
    import jax

    from trainer import config_files
    from trainer.distributed.sharding import make_mesh
    from trainer.loop import workdir
    from trainer.loop.checkpoints import Checkpoints
    from trainer.pretrained.starting_point import StartingPoint, initial_state
    from trainer.pretrained.trained_model import TrainedModel
    from trainer.step.optimizer import make_optimizer
    from trainer.step.state import State, abstract_state

    config = config_files.load("trainer/configs/tipsv2_b14.py", OVERRIDES)
    optimizer = make_optimizer(config.optimizer, config.n_steps)
    mesh = make_mesh(config.compute.n_fsdp)
    start = TrainedModel(folder, config, step=0) if case == "init_from" else None

    def begin() -> State:
        return initial_state(config, optimizer, mesh, StartingPoint(start, None))

    with Checkpoints(folder / workdir.CHECKPOINTS, n_kept=1) as saved:

        def resume() -> State:
            state = saved.resume(abstract_state(config, optimizer, mesh), _Nowhere())
            assert state is not None
            return state

        state, peak = _with_peak(resume if case == "resume" else begin)
        if case == "start":
            saved.save(state, _Nowhere())
    n_bytes = sum(
        part.data.nbytes
        for x in jax.tree.leaves(state)
        for part in x.addressable_shards
    )
    return {"state_mb": round(n_bytes / 1e6), case: round(peak / n_bytes, 3)}


class _Nowhere:
    """Stands for the position in a stream."""

    def get_state(self) -> dict:
        return {}

    def set_state(self, position: dict) -> None:
        pass


def _with_peak(make: Callable[[], T]) -> tuple[T, int]:
    """The result, and the most bytes that were held besides those held before."""
    import jax

    before = _status_bytes("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the earlier peak
    made = jax.block_until_ready(make())
    return made, _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    (found,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(found.split()[1]) * 1024


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], pathlib.Path(sys.argv[2]))))
        return
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.start_memory", case, folder],
                env=os.environ | flags | {"JAX_PLATFORMS": "cpu"},
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found |= json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
