import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from pipeline.models.gemma import GemmaConfig, Tokens, is_visible, rotate, turns
from tests.support.tiny_checkpoints import paligemma_config


def tokens(positions: list[int], kinds: str) -> Tokens:
    """One row; `p` prefix, `a` answer, `-` padding of the prefix."""
    return Tokens(
        jnp.array([positions]),
        is_prefix=jnp.array([[kind == "p" for kind in kinds]]),
        is_valid=jnp.array([[kind != "-" for kind in kinds]]),
    )


def picture(queries: Tokens, keys: Tokens, window: int | None = None) -> list[str]:
    rows = is_visible(queries, keys, window)[0]
    return ["".join("#" if seen else "." for seen in row) for row in rows]


def test_prefix_sees_the_prefix_and_answers_are_causal():
    row = tokens([1, 2, 3, 4, 4, 5], "ppp-aa")
    assert picture(row, row) == [
        "###...",
        "###...",
        "###...",
        "###.#.",  # padding, which nobody reads
        "###.#.",
        "###.##",
    ]


def test_window_limits_answers_but_not_the_prefix():
    row = tokens([1, 2, 3, 4, 5], "pppaa")
    assert picture(row, row, window=2) == ["###..", "###..", "###..", "..##.", "...##"]


def test_rotation_depends_on_the_distance_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def product(query_position: int, key_position: int) -> float:
        turned_q = rotate(q, turns(jnp.array([[query_position]]), 8, 10_000.0))
        turned_k = rotate(k, turns(jnp.array([[key_position]]), 8, 10_000.0))
        return float((turned_q * turned_k).sum())

    assert product(5, 3) == pytest.approx(product(105, 103), abs=1e-4)
    assert abs(product(5, 3) - product(5, 4)) > 1e-2


def test_rotation_of_a_worked_pair():
    x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    turned = rotate(x, turns(jnp.array([[3]]), 2, 10_000.0)).ravel()
    np.testing.assert_allclose(turned, [np.cos(3), np.sin(3)], rtol=1e-5)


def test_second_family_alternates_windows_and_caps_logits():
    config = GemmaConfig.from_hugging_face(paligemma_config("gemma2").text_config)
    assert config.windows == (7, None, 7)
    assert (config.attention_cap, config.final_cap) == (3.0, 5.0)
    assert config.query_scale == pytest.approx(20**-0.5)


def test_first_family_has_neither():
    config = GemmaConfig.from_hugging_face(paligemma_config("gemma").text_config)
    assert config.windows == (None, None, None)
    assert (config.attention_cap, config.final_cap) == (None, None)
    assert config.query_scale == pytest.approx(12**-0.5)


def test_another_family_is_refused():
    with pytest.raises(ValueError, match="model_type='llama': expected 'gemma'"):
        GemmaConfig.from_hugging_face(transformers.LlamaConfig())
