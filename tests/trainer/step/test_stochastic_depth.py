"""Stochastic depth: its keys, and the views that they reach."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support import objectives
from trainer.config import Remat
from trainer.models import two_tower
from trainer.step.objective import Objective
from trainer.step.stochastic_depth import sample_keys, view_keys

IDS = np.random.default_rng(0).integers(0, 256, (8, 16)).astype(np.uint8)
BATCH = objectives.batch() | {"sample_id": IDS}


def words(keys):
    return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).tolist()]


def test_a_sample_has_the_same_key_wherever_it_stands_in_a_batch():
    keys = words(sample_keys(0, jnp.int32(5), jnp.asarray(IDS)))
    turned = words(sample_keys(0, jnp.int32(5), jnp.asarray(IDS[::-1])))
    part = words(sample_keys(0, jnp.int32(5), jnp.asarray(IDS[2:4])))
    assert turned == keys[::-1]
    assert part == keys[2:4]


def test_keys_differ_by_seed_step_sample_and_view():
    found = [
        key
        for seed, step in ((0, 5), (0, 6), (1, 5))
        for key in words(
            view_keys(sample_keys(seed, jnp.int32(step), jnp.asarray(IDS)), (0, 1, 2))
        )
    ]
    assert len(set(found)) == len(found) == 3 * 8 * 3


def test_views_of_a_sample_are_adjacent():
    keys = sample_keys(0, jnp.int32(5), jnp.asarray(IDS))
    both = words(view_keys(keys, (3, 7)))
    assert both[::2] == words(view_keys(keys, (3,)))
    assert both[1::2] == words(view_keys(keys, (7,)))


def config(drop_path, **compute):
    plain = objectives.config()
    towers = {
        name: dataclasses.replace(
            getattr(plain.model, name), n_layers=2, drop_path=drop_path
        )
        for name in ("vision", "text")
    }
    return dataclasses.replace(
        plain,
        model=dataclasses.replace(plain.model, **towers),
        compute=dataclasses.replace(plain.compute, **compute),
    )


def test_every_view_follows_the_keys_of_its_sample():
    settings = config(drop_path=0.5)
    objective = Objective(settings)
    params = two_tower.init_params(settings.model, 0, has_head=True)

    @jax.jit
    def features(batch, step):
        model = nnx.merge(two_tower.graph(settings.model, has_head=True), params)
        batch = objective._with_keys(batch, {"step": step})
        views = objective.encode_views(model, batch)
        texts = objective._features(model, views, batch)
        return texts | {"masked": views.masked.patches, "local": views.local_cls}

    found = features(BATCH, 3)
    turned = features(jax.tree.map(lambda x: x[::-1], BATCH), 3)
    later = features(BATCH, 4)
    assert found.keys() == {"whole", "masked", "local", "alt_text", "synthetic_caption"}
    for name, rows in found.items():
        np.testing.assert_allclose(turned[name][::-1], rows, atol=1e-5)
        assert np.abs(later[name] - rows).max() > 1e-3


def gradients(**compute):
    """Loss and gradients of the first step."""
    run = objectives.Run(config(drop_path=0.5, **compute))
    state = run.initial()
    (loss, _), found = jax.jit(run.objective.gradients)(state["params"], state, BATCH)
    return jax.device_get((loss, found))


@pytest.mark.slow
def test_parts_of_a_batch_and_recomputed_blocks_drop_what_the_whole_drops():
    loss, whole = gradients()
    compute = {"n_microbatches": 2, "scan_layers": True, "remat": Remat.FULL}
    found, parts = gradients(**compute)
    assert found == pytest.approx(loss, rel=1e-5)
    for ours, theirs in zip(
        objectives.without_key_biases(parts),
        objectives.without_key_biases(whole),
        strict=True,
    ):
        np.testing.assert_allclose(
            ours, theirs, atol=1e-5 + 1e-4 * np.abs(theirs).max()
        )
