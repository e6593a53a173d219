"""Which view of which image goes where."""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.support.objectives import Run, batch, config
from trainer.models import two_tower


@pytest.fixture(scope="module")
def parts():
    """The objective, the model and a batch."""
    run = Run(config())
    graph = two_tower.graph(run.config.model, has_head=True)
    model = nnx.merge(graph, run.initial()["params"])
    return run.objective, model, batch()


def close(a, b):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_whole_view_is_not_masked_and_the_masked_one_is(parts):
    objective, model, rows = parts
    views = objective.encode_views(model, rows)
    jax.tree.map(close, views.whole, model.encode_image(rows["image"]))
    masked = model.encode_image(rows["image"], rows["mask"])
    jax.tree.map(close, views.masked, masked)
    assert np.abs(views.whole.cls - views.masked.cls).max() > 1e-2


def test_local_crops_keep_to_their_image_and_give_cls_1(parts):
    objective, model, rows = parts
    views = objective.encode_views(model, rows)
    for number in range(2):
        crop = model.encode_image(rows["local_crops"][:, number])
        close(views.local_cls[:, number], crop.cls[:, 0])
        assert np.abs(crop.cls[:, 0] - crop.cls[:, 1]).max() > 1e-3


def test_without_a_mask_ratio_the_student_sees_the_whole_view_once(parts):
    _, model, rows = parts
    views = Run(config(mask_ratio=0.0)).objective.encode_views(model, rows)
    assert views.masked is views.whole


def test_the_targets_have_no_gradient(parts):
    objective, _, rows = parts
    state = Run(config()).initial()
    graph = two_tower.graph(config().model, has_head=True)

    def total(params):
        views = objective.encode_views(nnx.merge(graph, params), rows)
        _, targets = objective.teach(views, state, rows)
        return targets.cls.sum() + (targets.patches**2).sum()

    slopes = jax.grad(total)(state["params"])
    assert not any(slope.any() for slope in jax.tree.leaves(slopes))
