"""Losses are those of the global batch, on however many devices it is cut over."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.step import losses, prototype_loss
from trainer.step.terms.koleo import koleo

# The number of devices is fixed when JAX starts, hence an interpreter of its own.
PROGRAM = """
import json, sys
import jax
import numpy as np
from jax.sharding import Mesh
from tests.trainer.step import test_losses_on_devices as cases

found = {}
for shape in ((1, 1), (2, 1), (4, 2)):
    devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
    mesh = Mesh(devices, ("data", "fsdp"))
    found[str(shape)] = cases.results(mesh, cases.CASES_OF_SHAPE[shape])
print(json.dumps(found))
"""
CONTRASTIVE = ("info_nce", "sigmoid", "koleo")
CASES_OF_SHAPE = {
    (1, 1): CONTRASTIVE,
    (2, 1): CONTRASTIVE,
    (4, 2): (*CONTRASTIVE, "sinkhorn", "centering"),
}
N = 16  # pairs; 2 or more on each device, in chunks of 3
RNG = np.random.default_rng(0)
IMAGE, TEXT = RNG.normal(size=(2, N, 5)).astype(np.float32)
OURS, THEIRS = RNG.normal(size=(2, N, 5, 4)).astype(np.float32)
OUR_MATRIX, THEIR_MATRIX = RNG.normal(size=(2, 4, 7)).astype(np.float32)


def results(mesh: jax.sharding.Mesh | None, names: tuple[str, ...]) -> dict:
    """Loss and gradients of the cases, as nested lists."""
    arrays = [IMAGE, TEXT, jnp.float32(0.2), jnp.float32(-1.5)]
    vectors = [OURS, OUR_MATRIX, THEIRS, THEIR_MATRIX]
    if mesh is not None:
        arrays, vectors = (_placed(x, mesh) for x in (arrays, vectors))
    cases = {
        "info_nce": (_info_nce, arrays[:3]),
        "sigmoid": (_sigmoid, arrays),
        "koleo": (_koleo, arrays[:1]),
        "sinkhorn": (_sinkhorn, vectors),
        "centering": (_centering, vectors),
    }
    found = {name: _run(*cases[name], mesh) for name in names}
    return jax.tree.map(lambda x: np.asarray(x).tolist(), found)


def _placed(arrays: list, mesh: jax.sharding.Mesh) -> list:
    """Cuts those with one row for each sample over all devices; copies the others."""
    rows, whole = (jax.P(mesh.axis_names), jax.P())
    return [
        jax.device_put(
            x, jax.NamedSharding(mesh, rows if x.shape[:1] == (N,) else whole)
        )
        for x in arrays
    ]


def _run(case, inputs, mesh):
    argnums = tuple(range(len(inputs)))
    function = jax.value_and_grad(lambda *x: case(mesh, *x), argnums, has_aux=True)
    return jax.jit(function)(*inputs)


def _info_nce(mesh, image, text, temperature):
    loss = losses.info_nce(image, text, temperature, mesh=mesh, n_rows_per_chunk=3)
    return loss, ()


def _sigmoid(mesh, *inputs):
    return losses.sigmoid(*inputs, mesh=mesh, n_rows_per_chunk=3), ()


def _koleo(mesh, image):
    return koleo(image, mesh=mesh, n_rows_per_chunk=3), ()


def _sinkhorn(mesh, ours, our_matrix, theirs, their_matrix):
    teacher = prototype_loss.Scores(theirs, their_matrix, 0.7)
    bias = prototype_loss.sinkhorn_bias(*teacher, n_prototypes_per_chunk=2)
    return _match(prototype_loss.Scores(ours, our_matrix, 0.5), teacher, bias)


def _centering(mesh, ours, our_matrix, theirs, their_matrix):
    teacher = prototype_loss.Scores(theirs, their_matrix, 0.7)
    bias = prototype_loss.center_bias(prototype_loss.mean_logits(*teacher[:2]), 0.7)
    return _match(prototype_loss.Scores(ours, our_matrix, 0.5), teacher, bias)


def _match(student, teacher, bias):
    found = prototype_loss.cross_entropy(
        student, teacher, bias, n_prototypes_per_chunk=2
    )
    return found.cross_entropy.mean(), (bias, found)


@pytest.fixture(scope="module")
def found() -> dict:
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ
        | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}", "JAX_PLATFORMS": "cpu"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("shape", "case"),
    [(str(shape), case) for shape, cases in CASES_OF_SHAPE.items() for case in cases],
)
def test_loss_and_gradients_are_those_of_one_device(found, expected, shape, case):
    ours, theirs = (jax.tree.leaves(x[case]) for x in (found[shape], expected))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def expected() -> dict:
    return results(None, CASES_OF_SHAPE[4, 2])


@pytest.mark.slow
def test_large_losses_fit_into_memory():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    mib = json.loads(done.stdout)
    assert mib["prototypes, chunked"] <= mib["prototypes, whole"] / 4
    assert mib["InfoNCE, chunked"] <= 300
