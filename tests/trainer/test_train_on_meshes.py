"""A run goes on with other devices than it began with."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.support.runs import ROOT, assert_close, finish, saved, start, with_set

# Saves a state on one mesh and reads it into another; prints whether it is the same.
PROGRAM = """
import json, pathlib, sys
import jax, numpy as np
from trainer.distributed import sharding
from trainer.loop import checkpoints
from trainer.step import state

class Position:
    def get_state(self): return {"global_next_index": 5}
    def set_state(self, position): self.found = position

def placed(n_fsdp, factor):
    rng = np.random.default_rng(0)
    layer = {"kernel": rng.normal(size=(24, 32)), "bias": rng.normal(size=8)}
    params = {"layer": {k: np.float32(v * factor) for k, v in layer.items()}}
    whole = {"params": params, "opt_state": (params,), "step": np.int32(3 * factor)}
    return state.place_on_mesh(whole, sharding.make_mesh(n_fsdp))

folder, position = pathlib.Path(sys.argv[1]), Position()
before = placed(1, 1)
with checkpoints.Checkpoints(folder, n_kept=1) as saved:
    saved.save(before, position)
with checkpoints.Checkpoints(folder, n_kept=1) as saved:
    after = saved.resume(placed(4, 0), position)
jax.tree.map(np.testing.assert_array_equal, before, after)
cut = after["opt_state"][0]["layer"]["kernel"]
print(json.dumps([position.found, cut.addressable_shards[0].data.shape]))
"""


def test_arrays_come_back_bit_for_bit_on_another_mesh(tmp_path):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "checkpoints"],
        env=os.environ | flags | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    position, shape = json.loads(done.stdout.splitlines()[-1])
    assert position == {"global_next_index": 5}
    assert shape == [24, 8]  # a quarter of 24 x 32


@pytest.mark.slow
def test_a_run_of_2_devices_ends_alike_on_8_that_share_parameters(
    recipe, export, tmp_path
):
    flags = ["--config", recipe, "--data", export]
    undisturbed, moved = tmp_path / "undisturbed", tmp_path / "moved"
    finish(start([*flags, "--workdir", undisturbed], n_devices=2))
    go_back(undisturbed, moved, step=3)
    cut = with_set("compute.n_fsdp=4")
    finish(start([*flags, "--workdir", moved, *cut], n_devices=8))
    assert_close(moved, undisturbed, 6)
    assert saved(moved, 6)["training"]["step"] == 6


def go_back(workdir: pathlib.Path, copy: pathlib.Path, step: int) -> None:
    """Copies a run as it was when it had saved a step."""
    shutil.copytree(workdir, copy)
    for folder in (copy / "checkpoints").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)


def test_a_batch_that_8_devices_cannot_share_exits_with_2(recipe, export, tmp_path):
    flags = ["--config", recipe, "--data", export, "--workdir", tmp_path / "work"]
    odd = with_set("data.batch_size=12")
    _, errors = finish(start([*flags, *odd], n_devices=8), code=2)
    assert errors.startswith("error: data.batch_size=12: expected a multiple of 8")
    assert errors.count("\n") == 1
    assert not (tmp_path / "work").exists()
