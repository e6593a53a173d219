"""The same training on 1, 2 and 8 devices and on any mesh, parameters cut or whole."""

import json
import os
import subprocess
import sys

import pytest

# Prints, for each mesh, how far steps end from those without a mesh.
PROGRAM = """
import json, sys, jax, numpy as np
from tests.support.objectives import Run, config, without_key_biases
from trainer.config import AntiCollapse, Ema, PatchLoss

recipes = {
    "tips": config(ema=Ema.FULL, patch_loss=PatchLoss.IBOT),
    "tipsv2": config(),
    "sinkhorn": config(anti_collapse=AntiCollapse.SINKHORN),
}
name, grids = sys.argv[1], json.loads(sys.argv[2])
alone, history = Run(recipes[name]).trained(3)
for grid in grids:
    run = Run(recipes[name], tuple(grid))
    state, others = run.trained(3)
    apart = [float(np.abs(a - b).max()) for a, b in zip(
        without_key_biases(state), without_key_biases(alone))]
    losses = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(others, history)]
    cut = sum(not x.sharding.is_fully_replicated for x in
              jax.tree.leaves(run.initial()["params"]))
    print(json.dumps([max(apart), max(losses), cut]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["tips", "tipsv2", "sinkhorn"])
@pytest.mark.parametrize("grids", [[(2, 1), (8, 1)], [(1, 2), (4, 2), (1, 8)]])
def test_a_mesh_trains_as_one_device(recipe, grids):
    settings = {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} "
        "--xla_force_host_platform_device_count=8",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, recipe, json.dumps(grids)],
        env=os.environ | settings,
        check=True,
        capture_output=True,
        text=True,
    )
    found = list(map(json.loads, done.stdout.splitlines()))
    assert len(found) == len(grids)
    for (apart, loss, n_cut), (_, n_fsdp) in zip(found, grids, strict=True):
        assert apart <= 1e-5
        assert loss <= 1e-5
        assert (n_cut > 10) == (n_fsdp > 1)
