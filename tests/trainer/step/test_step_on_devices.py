"""The same training on 1, 2 and 8 devices and on any mesh, parameters cut or whole."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys

import pytest

from tests.support import objectives
from trainer.config import AddedTerm, ComputeConfig, Remat, TrainConfig

# Prints, for each mesh, how far steps end from those without a mesh.
PROGRAM = """
import json, sys, jax, numpy as np
from tests.support.objectives import Run, batch, config, without_key_biases
from tests.trainer.step import test_step_on_devices as cases
from trainer.config import AntiCollapse, Ema, PatchLoss

recipes = {
    "added": cases.added_terms(),
    "tips": config(ema=Ema.FULL, patch_loss=PatchLoss.IBOT),
    "tipsv2": config(),
    "sinkhorn": config(anti_collapse=AntiCollapse.SINKHORN),
}
name, grids = sys.argv[1], json.loads(sys.argv[2])
ids = np.random.default_rng(0).integers(0, 256, (8, 16)).astype(np.uint8)
rows = batch() | {"sample_id": ids}
alone, history = Run(recipes[name]).trained(3, rows)
for grid in grids:
    run = Run(recipes[name], tuple(grid))
    state, others = run.trained(3, rows)
    apart = [float(np.abs(a - b).max()) for a, b in zip(
        without_key_biases(state), without_key_biases(alone))]
    losses = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(others, history)]
    cut = sum(not x.sharding.is_fully_replicated for x in
              jax.tree.leaves(run.initial()["params"]))
    print(json.dumps([max(apart), max(losses), cut]))
"""


def added_terms() -> TrainConfig:
    """KoLeo, Gram anchoring and stochastic depth, in two parts of four images."""
    plain = objectives.config()
    towers = {
        name: dataclasses.replace(getattr(plain.model, name), n_layers=2, drop_path=0.4)
        for name in ("vision", "text")
    }
    koleo, gram = (
        AddedTerm(term=f"trainer.step.terms.{name}", weight=weight)
        for name, weight in (("koleo:KoLeo", 0.1), ("gram:Gram", 2.0))
    )
    return dataclasses.replace(
        plain,
        model=dataclasses.replace(plain.model, **towers),
        terms=(koleo, gram),
        compute=ComputeConfig(n_microbatches=2, scan_layers=True, remat=Remat.FULL),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "grids"),
    [
        *itertools.product(
            ("tips", "tipsv2", "sinkhorn"),
            ([(2, 1), (8, 1)], [(1, 2), (4, 2), (1, 8)]),
        ),
        ("added", [(4, 1), (2, 2), (1, 4)]),
    ],
)
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
