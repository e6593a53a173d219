"""Which token a pair compares with which text, by which loss and scalars."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import reference
from trainer.config import ContrastiveLoss, ContrastivePair, Text
from trainer.step.terms.contrastive import Contrastive
from trainer.step.terms.term import View, WholeBatch

RNG = np.random.default_rng(0)
CLS = RNG.normal(size=(6, 2, 5))
TEXTS = dict(zip(Text, RNG.normal(size=(2, 6, 5)), strict=True))
TEMPERATURES = {Text.ALT_TEXT: 0.2, Text.SYNTHETIC_CAPTION: 0.4}
BIASES = {Text.ALT_TEXT: -1.5, Text.SYNTHETIC_CAPTION: -3.0}


def term(token, text, loss=ContrastiveLoss.INFO_NCE, **options):
    pair = ContrastivePair(token=token, text=text, weight=1.0)
    return Contrastive(pair, loss, **options)


def value(one, cls, texts, temperatures, biases):
    model = types.SimpleNamespace(
        temperatures=lambda: temperatures, biases=lambda: biases
    )
    features = {View.WHOLE: cls, **texts}
    return one.value(WholeBatch(model, features, None, 1024))


def inputs():
    return jax.tree.map(jnp.float32, (CLS, TEXTS, TEMPERATURES, BIASES))


@pytest.mark.parametrize("token", [1, 2])
@pytest.mark.parametrize("text", Text)
def test_a_pair_compares_its_token_with_its_text(token, text):
    found = value(term(token, text), *inputs())
    image, temperature = CLS[:, token - 1], TEMPERATURES[text]
    expected = reference.info_nce(image, TEXTS[text], temperature)
    assert float(found.nats) == pytest.approx(expected, rel=1e-5)
    assert found.metrics == {f"temperature_{text}": jnp.float32(temperature)}


@pytest.mark.parametrize("token", [1, 2])
@pytest.mark.parametrize("text", Text)
def test_the_sigmoid_loss_takes_the_bias_of_its_text(token, text):
    found = value(term(token, text, ContrastiveLoss.SIGMOID), *inputs())
    image, scalars = CLS[:, token - 1], (TEMPERATURES[text], BIASES[text])
    expected = reference.sigmoid_loss(image, TEXTS[text], *scalars)
    assert float(found.nats) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ContrastiveLoss)
def test_a_pair_reaches_its_own_token_text_and_scalars_only(loss):
    one = term(2, Text.ALT_TEXT, loss)

    def nats(*point):
        return value(one, *point).nats

    slopes = jax.jit(jax.grad(nats, argnums=range(4)))(*inputs())
    cls, texts, temperatures, biases = jax.device_get(slopes)
    assert not cls[:, 0].any()
    assert cls[:, 1].any()
    for by_text in (texts, temperatures):
        assert {text for text in Text if by_text[text].any()} == {Text.ALT_TEXT}
    has_bias = loss is ContrastiveLoss.SIGMOID
    assert {text for text in Text if biases[text].any()} == (
        {Text.ALT_TEXT} if has_bias else set()
    )
    assert ("bias_alt_text" in one.reach) == has_bias


def test_pairs_of_one_text_are_named_by_their_token():
    names = [term(token, Text.ALT_TEXT, is_alone=False).name for token in (1, 2)]
    assert names == ["contrastive_alt_text_cls1", "contrastive_alt_text_cls2"]
    assert term(1, Text.ALT_TEXT).name == "contrastive_alt_text"


def test_chance_is_the_logarithm_of_the_batch():
    assert term(1, Text.ALT_TEXT).chance(6) == math.log(6)
