"""The same training on 1, 2 and 8 devices and on any mesh, parameters cut or whole."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

# Prints, for each mesh, how far three steps end from those without a mesh.
PROGRAM = """
import json, jax, numpy as np
from objectives import Run, config, without_key_biases
from trainer.config import AntiCollapse, Ema, PatchLoss

recipes = {
    "tips": config(ema=Ema.FULL, patch_loss=PatchLoss.IBOT),
    "tipsv2": config(),
    "sinkhorn": config(anti_collapse=AntiCollapse.SINKHORN),
}
found = {}
for name, recipe in recipes.items():
    alone, history = Run(recipe).trained(3)
    for n_fsdp in (1, 2, 8)[: len(jax.devices())]:
        if len(jax.devices()) % n_fsdp:
            continue
        run = Run(recipe, n_fsdp)
        state, others = run.trained(3)
        apart = [float(np.abs(a - b).max()) for a, b in zip(
            without_key_biases(state), without_key_biases(alone))]
        losses = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(others, history)]
        cut = sum(not x.sharding.is_fully_replicated for x in
                  jax.tree.leaves(run.initial()["params"]))
        found[f"{name} {n_fsdp}"] = [max(apart), max(losses), cut]
print(json.dumps(found))
"""


@pytest.mark.parametrize("n_devices", [2, 8])
def test_a_mesh_trains_as_one_device(n_devices):
    folder = pathlib.Path(__file__).parent
    flags = f"--xla_force_host_platform_device_count={n_devices}"
    paths = os.pathsep.join([str(folder), str(folder.parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": paths},
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 3 * (2 if n_devices == 2 else 3)
    for name, (apart, loss, n_cut) in found.items():
        assert apart <= 1e-5, name
        assert loss <= 1e-5, name
        assert (n_cut > 10) == (not name.endswith(" 1")), name
