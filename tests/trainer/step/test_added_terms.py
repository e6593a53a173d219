"""Terms that a configuration adds, and objectives without contrastive pairs."""

import jax
import numpy as np
import pytest

from examples import loss_term
from tests.support.objectives import Run, batch, config
from trainer.config import AddedTerm, ContrastivePair, Ema, Text
from trainer.configs import silc_b14
from trainer.models import two_tower
from trainer.step.objective import Objective
from trainer.step.terms.declared import check_added, declared_terms, untrained
from trainer.step.terms.koleo import KoLeo
from trainer.step.terms.term import View, Weighted, WholeBatch
from trainer.step.train_step import make_train_step

GRAM = AddedTerm(
    term="trainer.step.terms.gram:Gram", weight=2.0, settings={"n_steps_per_copy": 20}
)
KOLEO = AddedTerm(term="trainer.step.terms.koleo:KoLeo", weight=0.1)
NOTHING_ELSE = {"distillation_weight": 0.0, "patch_weight": 0.0, "contrastive": ()}


def test_steps_train_the_added_terms_and_what_gram_keeps():
    """The Gram teacher is another encoder, until it is due to be the student's."""
    run = Run(config(**NOTHING_ELSE, terms=(GRAM, KOLEO)))
    state, rows, history = run.initial(), batch(), []
    other = two_tower.init_params(run.config.model, rng_seed=7)["vision"]
    assert jax.tree.structure(other) == jax.tree.structure(state["terms"]["gram"])
    state["terms"]["gram"] = jax.tree.map(lambda x: 1.1 * x + 0.01, other)
    kept = jax.device_get(state["terms"]["gram"])
    train_step = make_train_step(run.config, run.optimizer)
    for step in range(20):
        if step == 19:
            jax.tree.map(np.testing.assert_array_equal, state["terms"]["gram"], kept)
        state, metrics = train_step(state, rows)
        history.append(jax.device_get(metrics))
    for name in ("gram", "koleo"):
        assert history[-1][name] < history[0][name]
    first = history[0]
    expected = 2.0 * first["gram"] + 0.1 * first["koleo"]
    assert first["loss"] == pytest.approx(expected, rel=1e-6)
    assert "gram_chance" not in first
    vision = state["params"]["vision"]
    jax.tree.map(np.testing.assert_array_equal, state["terms"]["gram"], vision)


def test_without_pairs_no_text_is_encoded_and_the_rest_is_trained():
    run = Run(config(contrastive=(), ema=Ema.FULL))
    metrics, gradients = run.gradients()
    expected = metrics["distillation"] + 2 * metrics["patch"]
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)
    assert not [name for name in metrics if "alt_text" in name or "caption" in name]
    silent = {
        name
        for name, group in gradients.items()
        if not any(np.any(leaf) for leaf in jax.tree.leaves(group))
    }
    assert silent == {
        "text",
        "log_temperature_alt_text",
        "log_temperature_synthetic_caption",
    }
    terms = declared_terms(run.config)
    assert set(untrained(terms, gradients)) == silent
    traced = jax.make_jaxpr(run.objective.terms)
    state, rows = run.initial(), batch()
    del rows["alt_text"], rows["synthetic_caption"]
    traced(state["params"], state, rows)


def test_a_text_that_no_pair_names_is_not_read():
    pair = ContrastivePair(token=2, text=Text.ALT_TEXT, weight=1.0)
    settings = {**NOTHING_ELSE, "contrastive": (pair,)}
    run = Run(config(**settings))
    state, rows = run.initial(), batch()
    del rows["synthetic_caption"]
    terms, metrics, _ = jax.eval_shape(
        run.objective.terms, state["params"], state, rows
    )
    assert set(terms) == {"contrastive_alt_text"}
    assert "temperature_synthetic_caption" not in metrics


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ("no.such", "expected MODULE:CLASS of a term"),
        ("trainer.step.terms.koleo:koleo", "expected MODULE:CLASS of a BatchTerm or"),
    ],
)
def test_a_term_that_is_none_is_named(term, message):
    settings = config(terms=(AddedTerm(term=term, weight=1.0),))
    with pytest.raises(ValueError, match=message) as error:
        Objective(settings)
    assert f"terms[0].term={term}" in str(error.value)


def koleo(**settings):
    return AddedTerm(term=KOLEO.term, weight=1.0, settings=settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": (KOLEO, KOLEO)}, "expected a name that no other term has"),
        ({"terms": (koleo(token=4),)}, r"terms\[0\].settings: token=4: expected 1"),
        ({"terms": (koleo(tokn=1),)}, r"terms\[0\].settings: .*tokn.*expected token"),
        (
            {"terms": (koleo(view="masked"),), "patch_weight": 0.0},
            "reads the masked view, expected self_supervision.patch_weight of more",
        ),
    ],
)
def test_a_term_that_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Objective(config(**changes))


class Misspelled(KoLeo):
    reach = frozenset({"vison"})


def test_a_reach_that_is_no_group_of_parameters_is_named():
    settings = config(terms=(AddedTerm(term=f"{__name__}:Misspelled", weight=1.0),))
    message = r"terms\[0\]=koleo: reach=\['vison'\], expected groups of parameters: "
    with pytest.raises(ValueError, match=message):
        Objective(settings)


@pytest.mark.parametrize("source", ["1 / 0", "def ("])
def test_a_module_of_a_term_that_fails_is_one_line(tmp_path, monkeypatch, source):
    (tmp_path / "failing_term.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    settings = config(terms=(AddedTerm(term="failing_term:X", weight=1.0),))
    with pytest.raises(ValueError, match=r"term=failing_term:X: .*; expected MODULE:C"):
        Objective(settings)


def test_the_example_adds_its_term_and_the_settings_of_its_recipe():
    (added,) = loss_term.get_config().terms
    objective = Run(config(terms=(added,))).objective
    state, rows = Run(config()).initial(), batch()
    terms, metrics, _ = jax.eval_shape(objective.terms, state["params"], state, rows)
    assert "uniformity" in terms
    assert "uniformity_chance" in metrics
    cls = np.random.default_rng(0).normal(size=(5, 2, 4))
    x = cls[:, 0] / np.linalg.norm(cls[:, 0], axis=1, keepdims=True)
    squares = ((x[:, None] - x[None]) ** 2).sum(-1)
    whole = WholeBatch(None, {View.WHOLE: cls.astype(np.float32)}, None, 1)
    found = loss_term.Uniformity(t=3.0).value(whole).nats
    assert float(found) == pytest.approx(np.log(np.exp(-3 * squares).mean()), rel=1e-5)
    with pytest.raises(ValueError, match=r"t=0\.0: expected more than 0"):
        loss_term.Uniformity(t=0.0)


def test_a_teacher_without_self_supervision_is_refused():
    settings = config(**NOTHING_ELSE | {"terms": (KOLEO,)})
    taught = type("Taught", (KoLeo,), {"needs_teacher": True})
    with pytest.raises(ValueError, match="needs a teacher, expected self_supervision"):
        check_added(settings, [], [Weighted(1.0, taught())])


@pytest.mark.slow
def test_the_set_up_of_silc_learns_both_of_its_terms():
    ssl = silc_b14.get_config().self_supervision
    changes = {
        field: getattr(ssl, field)
        for field in ("patch_weight", "distillation_weight", "ema", "final_ema_decay")
    }
    pairs = silc_b14.get_config().contrastive
    run = Run(config(contrastive=pairs, n_steps=300, **changes), has_noise=False)
    _, history = run.trained(300)
    for term in ("contrastive_alt_text", "distillation"):
        assert history[-1][term] < 0.95 * history[-1][f"{term}_chance"]
    assert "patch" not in history[-1]
