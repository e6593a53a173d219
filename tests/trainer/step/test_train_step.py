"""One compiled step of the tiny model, looked at from several sides."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from tests.support.objectives import (
    ALT_TEXT,
    DISTILLATION,
    PATCH,
    SYNTHETIC_CAPTION,
)
from trainer.data.batches import ViewSample
from trainer.data.mixture import Mixture
from trainer.data.shards import Shards
from trainer.data.text_tokenizer import Tokenizer
from trainer.step.optimizer import make_optimizer
from trainer.step.state import init_state
from trainer.step.train_step import make_train_step


@dataclasses.dataclass(frozen=True)
class Setup:
    config: object
    batch: dict
    initial: dict  # as numpy, since steps donate their state
    train_step: object

    def run(self, n_steps, batch=None):
        state, history = self.initial, []
        for _ in range(n_steps):
            state, metrics = self.train_step(state, batch or self.batch)
            history.append(jax.device_get(metrics))
        return jax.device_get(state), history


@pytest.fixture(scope="module")
def setup(export, tiny):
    config = dataclasses.replace(tiny, n_steps=200)
    tokenizer = Tokenizer(config.data.tokenizer, config.model.text.max_tokens)
    shards = Mixture({"web": Shards(export)})
    view = ViewSample(shards, tokenizer, config.data, 1, config.self_supervision, 14)
    rows = [view(position, position) for position in range(8)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    optimizer = make_optimizer(config.optimizer, config.n_steps)
    initial = jax.device_get(init_state(config, optimizer))
    train_step = make_train_step(config, optimizer)
    return Setup(config, batch, initial, train_step)


def test_metrics_name_every_term_beside_its_chance(setup):
    _, (metrics,) = setup.run(1)
    terms = (
        ALT_TEXT,
        SYNTHETIC_CAPTION,
        DISTILLATION,
        PATCH,
    )
    assert metrics.keys() == {
        "loss",
        *terms,
        *(f"{term}_chance" for term in terms),
        "patch_masked",
        "patch_visible",
        "teacher_entropy_cls",
        "teacher_entropy_patch",
        "teacher_temperature",
        "cls_cosine",
        "n_used_prototypes_cls",
        "n_used_prototypes_patch",
        "temperature_alt_text",
        "temperature_synthetic_caption",
        "gradient_norm",
        *(f"gradient_norm_{name}" for name in setup.initial["params"]),
    }
    norms = [metrics[f"gradient_norm_{name}"] for name in setup.initial["params"]]
    assert metrics["gradient_norm"] == pytest.approx(np.linalg.norm(norms), rel=1e-5)
    assert metrics["contrastive_alt_text_chance"] == pytest.approx(math.log(8))
    assert metrics["patch_chance"] == pytest.approx(math.log(12))
    c1, c2, distillation, patch = (metrics[term] for term in terms)
    expected = (c1 + c2) / 2 + distillation + 2 * patch
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)
    assert metrics["temperature_alt_text"] == pytest.approx(0.07)
    assert metrics["cls_cosine"] == pytest.approx(1)  # both start at zero


def test_a_repeated_batch_is_learned(setup):
    _, history = setup.run(60)
    assert history[-1]["loss"] < history[0]["loss"]
    for term in (ALT_TEXT, SYNTHETIC_CAPTION):
        assert history[-1][term] < 0.6 * math.log(8)


def test_the_cls_tokens_split_within_a_few_updates(setup):
    before = cls_tokens(setup.initial)
    # The rate of the first step is 0, and the second moves each number by its sign
    # alone, which both tokens may share.
    after = cls_tokens(setup.run(5)[0])
    assert np.array_equal(before[0], before[1])
    assert np.abs(after[0] - after[1]).max() > 1e-4


def cls_tokens(state):
    return state["params"]["vision"]["encoder"]["ToTokenSequence_0"]["cls"][0]


def test_all_parameters_learn(setup):
    after = setup.run(3)[0]["params"]
    for path, old in jax.tree_util.tree_leaves_with_path(setup.initial["params"]):
        new = after
        for key in path:
            new = new[key.key]
        # Attention does not see a bias that all keys share.
        is_key_bias = [key.key for key in path[-2:]] == ["key", "bias"]
        assert is_key_bias or not np.array_equal(old, new), path


def test_captions_reach_their_own_token(setup):
    """Other alt texts change the first term and leave the second one alone."""
    other = setup.batch | {"alt_text": setup.batch["alt_text"][::-1]}
    _, (one,) = setup.run(1)
    _, (two,) = setup.run(1, other)
    assert one[ALT_TEXT] != pytest.approx(two[ALT_TEXT], rel=1e-3)
    assert one[SYNTHETIC_CAPTION] == pytest.approx(two[SYNTHETIC_CAPTION])


def test_the_same_start_gives_the_same_bits(setup):
    ours, theirs = setup.run(3)[0], setup.run(3)[0]
    assert int(ours["step"]) == 3
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
