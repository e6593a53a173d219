"""The step of each recipe, compiled for the TPUs that it is meant for, without them."""

import re
from collections.abc import Iterator

import jax
import pytest

from benchmarks import aot, hlo
from trainer import config_files
from trainer.config import TrainConfig

pytestmark = pytest.mark.aot

# GB that a chip may send in a step. Recipes that unroll their blocks are compiled with
# two of each encoder, the others whole.
MAX_SENT_GB = {
    "tips_b14": 6,
    "tips_g14": 30,
    "tips_g14_highres": 25,
    "tipsv2_b14": 4,
    "tipsv2_g14": 25,
    "tipsv2_g14_highres": 25,
    "tipsv2_l14_distilled": 5,
}
# Products of float32 by intention: positions resized, images with texts.
FLOAT32 = r"_resize|\)/shard_map"


@pytest.fixture(autouse=True)
def on_a_cpu() -> Iterator[None]:
    """JAX would look for the TPUs whose compiler is there."""
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "cpu")
    yield
    jax.config.update("jax_platforms", before)


def config_of(name: str) -> TrainConfig:
    config = config_files.load(aot.CONFIGS / f"{name}.py")
    return config if config.compute.scan_layers else aot.with_layers(config, 2, 2)


@pytest.mark.parametrize("name", aot.RECIPES)
def test_a_step_sends_multiplies_and_holds_what_it_may(name):
    compiled = aot.compile_step(config_of(name), aot.RECIPES[name], effort=-1)
    program = compiled.as_text()
    assert sum(aot.sent_gb(program).values()) <= MAX_SENT_GB[name]
    wide = {
        one.path
        for one in hlo.products(program)
        if "f32" in one.factors and not re.search(FLOAT32, one.path)
    }
    assert not wide
    assert aot.compiled_bytes(compiled) <= 0.9 * aot.V5P.memory_bytes
