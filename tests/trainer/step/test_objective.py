"""What each term reaches, what the teacher keeps, and that parts make the whole."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.support.objectives import (
    ALT_TEXT,
    DISTILLATION,
    PATCH,
    SYNTHETIC_CAPTION,
    Run,
    batch,
    config,
)
from trainer.config import (
    AntiCollapse,
    ComputeConfig,
    ContrastiveLoss,
    Ema,
    PatchLoss,
    SelfSupervisionConfig,
)
from trainer.step import teacher
from trainer.step.terms.declared import declared_terms

TIPS = {"ema": Ema.FULL, "patch_loss": PatchLoss.IBOT}
TIPSV2 = {"ema": Ema.HEAD, "patch_loss": PatchLoss.IBOT_PLUS_PLUS}
RECIPES = [
    pytest.param(TIPS, marks=pytest.mark.slow, id="tips"),
    pytest.param(TIPSV2, id="tipsv2"),
]
ENCODER = "vision"
ALT_TEMPERATURE = "log_temperature_alt_text"
SYNTHETIC_TEMPERATURE = "log_temperature_synthetic_caption"
TERM_TO_REACHED = {
    ALT_TEXT: {ENCODER, "text", ALT_TEMPERATURE},
    SYNTHETIC_CAPTION: {ENCODER, "text", SYNTHETIC_TEMPERATURE},
    DISTILLATION: {ENCODER, "head"},
    PATCH: {ENCODER, "head", "mask_token"},
}


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Within 1e-5 of the largest entry, or of 1."""
    scale = max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * scale)


def reached(gradients: dict) -> set[str]:
    """Groups of parameters with a gradient."""
    return {
        name
        for name, group in gradients.items()
        if any(np.abs(leaf).max() > 1e-9 for leaf in jax.tree.leaves(group))
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_term_reaches_its_own_parameters(recipe):
    run = Run(config(**recipe))
    state, rows = run.initial(), batch()

    @jax.jit
    def slopes(params, kept):
        def term_values(params, kept):
            return run.objective.terms(params, {**state, **kept}, rows)[0]

        return jax.jacrev(term_values, argnums=(0, 1))(params, kept)

    kept = {"teacher": state["teacher"], "centers": state["centers"]}
    of_terms = slopes(state["params"], kept)
    assert of_terms.keys() == TERM_TO_REACHED.keys()
    declared = {term.name: term.reach for _, term in declared_terms(run.config)}
    assert declared == TERM_TO_REACHED
    for term, (of_params, of_kept) in of_terms.items():
        assert reached(of_params) == TERM_TO_REACHED[term], term
        assert reached(of_kept) == set(), term


def test_the_teacher_of_tipsv2_is_a_head_and_that_of_tips_has_an_encoder():
    kept = {
        ema: set(Run(config(ema=ema)).initial()["teacher"])
        for ema in (Ema.HEAD, Ema.FULL)
    }
    assert kept == {Ema.HEAD: {"head"}, Ema.FULL: {"head", "vision"}}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_teacher_follows_the_student(recipe):
    run = Run(config(**recipe, ema_decay=0.9, final_ema_decay=0.9))
    before = jax.device_get(run.initial())
    after, _ = run.trained(1)
    for name, old in before["teacher"].items():
        expected = jax.tree.map(
            lambda a, b: 0.9 * a + 0.1 * b, old, after["params"][name]
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            after["teacher"][name],
            expected,
        )


def test_centers_move_towards_the_mean_logits():
    run = Run(config(center_momentum=0.75))
    state = run.initial()
    _, _, mean_logits = run.objective.terms(state["params"], state, batch())
    expected = {name: 0.25 * np.asarray(mean) for name, mean in mean_logits.items()}
    after, _ = run.trained(1)
    for name in teacher.CENTERS:
        np.testing.assert_allclose(after["centers"][name], expected[name], atol=1e-6)
        assert np.abs(expected[name]).max() > 1e-4


@pytest.mark.parametrize(
    ("recipe", "n_microbatches"),
    [pytest.param(TIPS, 2, marks=pytest.mark.slow), (TIPSV2, 4)],
)
def test_parts_of_a_batch_are_worth_the_whole(recipe, n_microbatches):
    compute = ComputeConfig(n_microbatches=n_microbatches)
    of_whole, whole = Run(config(**recipe)).gradients()
    of_parts, parts = Run(config(**recipe, compute=compute)).gradients()
    assert of_parts.keys() == of_whole.keys()
    for name in of_parts.keys() - {"n_used_prototypes_cls", "n_used_prototypes_patch"}:
        assert of_parts[name] == pytest.approx(of_whole[name], rel=1e-5), name
    jax.tree.map(assert_close, parts, whole)


def test_every_term_falls_on_one_repeated_batch():
    """First they rise to chance, while the centers spread the teacher's choices."""
    _, history = Run(config(n_steps=300), has_noise=False).trained(300)
    for term in TERM_TO_REACHED:
        assert history[-1][term] < 0.95 * history[-1][f"{term}_chance"], term


def test_the_sigmoid_loss_trains_its_biases():
    plain = config()
    model = dataclasses.replace(
        plain.model, contrastive_loss=ContrastiveLoss.SIGMOID, initial_bias=-2.0
    )
    run = Run(config(model=model))
    before = run.initial()["params"]["bias_alt_text"]
    after, history = run.trained(30)
    assert after["params"]["bias_alt_text"] != before
    assert history[-1][ALT_TEXT] < history[0][ALT_TEXT]


@pytest.mark.slow
def test_sinkhorn_keeps_more_prototypes_in_use_than_nothing():
    run = Run(config(anti_collapse=AntiCollapse.SINKHORN))
    _, history = run.trained(20)
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)
    assert history[-1]["n_used_prototypes_patch"] > 12


def test_without_self_supervision_there_is_no_teacher():
    off = Run(config(distillation_weight=0.0, patch_weight=0.0))
    state, (metrics,) = off.trained(1)
    assert state["teacher"] == state["centers"] == {}
    assert "head" not in state["params"]
    c1, c2 = metrics[ALT_TEXT], metrics[SYNTHETIC_CAPTION]
    assert metrics["loss"] == pytest.approx((c1 + c2) / 2)


def test_schedules_have_their_ends():
    ssl = SelfSupervisionConfig(
        ema_decay=0.9,
        final_ema_decay=1.0,
        initial_teacher_temperature=0.04,
        teacher_temperature=0.08,
        n_teacher_warmup_steps=10,
    )
    decays = [float(teacher.decay_at(step, 100, ssl)) for step in (0, 50, 100, 200)]
    assert decays == pytest.approx([0.9, 0.95, 1.0, 1.0])
    temperatures = [float(teacher.temperature_at(step, ssl)) for step in (0, 5, 10, 99)]
    assert temperatures == pytest.approx([0.04, 0.06, 0.08, 0.08])
