"""The step on devices that share parameters: what is compiled, and how often."""

import json
import os
import subprocess
import sys

# The number of devices is fixed when JAX starts, hence interpreters of their own.
PROGRAM = """
import json, sys
from tests.trainer.step import test_sharded_step as cases
print(json.dumps(getattr(cases, sys.argv[1])()))
"""


def found_by(case: str) -> dict:
    """What a function of this module returns with eight devices."""
    flag = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, case],
        env=os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flag}"},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def steps() -> dict:
    """Two steps with parameters over eight devices."""
    import jax

    from tests.support import objectives
    from trainer.distributed import sharding
    from trainer.step.state import abstract_state
    from trainer.step.train_step import make_train_step

    run = objectives.Run(objectives.config(), grid=(1, 8))
    train_step = make_train_step(run.config, run.optimizer, run.mesh)
    rows = sharding.to_devices(run.mesh, objectives.batch())
    state = run.initial()
    for _ in range(2):
        state, _ = train_step(state, rows)
    wanted = abstract_state(run.config, run.optimizer, run.mesh)
    is_kept = jax.tree.map(lambda x, y: x.sharding == y.sharding, state, wanted)
    return {
        "n_compiled": train_step._cache_size(),
        "are_shardings_kept": all(jax.tree.leaves(is_kept)),
        "n_cut": sum(
            not x.sharding.is_fully_replicated for x in jax.tree.leaves(state)
        ),
    }


def test_two_steps_compile_once_and_keep_the_shardings():
    found = found_by("steps")
    assert found["n_compiled"] == 1
    assert found["are_shardings_kept"]
    assert found["n_cut"] > 20


def gathered() -> dict:
    """Shapes that collectives of an image encoder and its gradient bring together."""
    import re

    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx
    from jax.sharding import Mesh

    from trainer.config import ComputeConfig, FeedForward, Remat, VisionConfig
    from trainer.distributed import sharding
    from trainer.models.layers import ParamMaker
    from trainer.models.vit import VisionTransformer

    config = VisionConfig(
        width=32,
        n_layers=3,
        n_heads=2,
        mlp_dim=72,
        feed_forward=FeedForward.SWIGLU,
        position_grid=(1, 3),
    )
    compute = ComputeConfig(scan_layers=True, remat=Remat.FULL)
    model = VisionTransformer(config, ParamMaker(None), compute)
    graph, params = nnx.split(model)
    params = nnx.to_pure_dict(params)
    mesh = Mesh(np.array(jax.devices()).reshape(1, 8), sharding.BATCH_AXES)

    def loss(params, image):
        with sharding.tracing_for(mesh):
            found = nnx.merge(graph, params)(image)
            return (found.cls**2).sum() + (found.patches**3).sum()

    places = sharding.state_sharding(mesh, params)
    step = jax.jit(
        jax.grad(loss),
        in_shardings=(places, sharding.batch_sharding(mesh)),
        out_shardings=places,
    )
    image = jax.ShapeDtypeStruct((24, 14, 42, 3), jnp.float32)
    program = step.lower(params, image).compile().as_text()
    pattern = r"= \w+\[([\d,]*)\]\S* (all-gather|all-reduce|all-to-all)\("
    shapes = {shape for shape, _ in re.findall(pattern, program)}
    return {"shapes": sorted(shapes)}


def test_blocks_gather_parameters_and_leave_activations_where_they_are():
    """Three images for each device, of three patches and two CLS tokens."""
    shapes = [x.split(",") for x in found_by("gathered")["shapes"] if x]
    assert ["32", "32"] in shapes
    n_rows, n_tokens = ("24", "3"), ("5", "120", "15")
    assert not [x for x in shapes if set(x) & {*n_rows, *n_tokens}]
