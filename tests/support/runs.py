"""Runs `python -m trainer.train` as users do, and reads what the runs left."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp

from trainer.config import TrainConfig
from trainer.config_files import to_dict

RECIPE = """
from trainer.config import TrainConfig
from trainer.config_files import from_dict

def get_config():
    return from_dict(TrainConfig, {values!r})
"""
ROOT = pathlib.Path(__file__).parents[2]
LIMIT_S = 400
# Recipes as overrides. The first compiles in a fraction of the others' time.
RECIPES = {
    "contrastive": (
        "self_supervision.distillation_weight=0",
        "self_supervision.patch_weight=0",
    ),
    "tips": ("self_supervision.ema=full", "self_supervision.patch_loss=ibot"),
    "tipsv2": ("self_supervision.ema=head", "self_supervision.patch_loss=ibot++"),
}
TIMED = ("images_per_s", "share_waiting_for_data", "flops_per_s_per_device")
NO_NUMBERS = ("version",)


def write_recipe(folder: pathlib.Path, config: TrainConfig) -> pathlib.Path:
    """A configuration as a file for `--config`."""
    path = folder / "recipe.py"
    path.write_text(RECIPE.format(values=to_dict(config)))
    return path


def with_set(*overrides: str) -> list[str]:
    return [part for one in overrides for part in ("--set", one)]


def start(
    arguments: Sequence[object],
    *,
    module: str = "trainer.train",
    n_devices: int = 1,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """A process on virtual devices. `finish` it, or kill its group."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    flag = f"--xla_force_host_platform_device_count={n_devices}"
    flags = f"{os.environ['XLA_FLAGS']} {flag}"
    own = {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=os.environ | cache | own | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """Standard output and standard error of a process that must end with `code`."""
    try:
        output, errors = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == code, errors
    return output, errors


def saved(workdir: pathlib.Path, step: int) -> dict:
    """All that a checkpoint holds, on this process's first device."""
    folder = workdir / "checkpoints" / str(step)
    arrays = {name: _arrays(folder / name) for name in ("params", "training")}
    return {**arrays, "data": json.loads((folder / "data" / "metadata").read_text())}


def _arrays(folder: pathlib.Path) -> dict:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            checkpointer.metadata(folder).item_metadata.tree,
        )
        return checkpointer.restore(folder, shapes)


def assert_same(ours: dict, theirs: dict) -> None:
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def metric_lines(workdir: pathlib.Path, name: str = "metrics.jsonl") -> list[dict]:
    """The numbers, without what depends on the clock."""
    lines = (workdir / name).read_text().splitlines()
    left_out = (*TIMED, *NO_NUMBERS)
    return [
        {k: v for k, v in json.loads(x).items() if k not in left_out} for x in lines
    ]


def assert_close(ours: pathlib.Path, theirs: pathlib.Path, step: int) -> None:
    """The same to 1e-5 in parameters, and relative to it in the lines of metrics.

    Without the biases that all keys of an attention share: their gradient is rounding,
    and Adam makes it as large as any other.
    """
    for one, other in zip(metric_lines(ours), metric_lines(theirs), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_allclose(value, other[name], 1e-5, 1e-6, err_msg=name)
    left, right = (saved(workdir, step) for workdir in (ours, theirs))
    assert left["data"] == right["data"]
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(left["params"]),
        jax.tree.leaves(right["params"]),
        strict=True,
    )
    for (path, one), other in pairs:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith("key/bias"):
            np.testing.assert_allclose(one, other, 0, 1e-5, err_msg=name)
