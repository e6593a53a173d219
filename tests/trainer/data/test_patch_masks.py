import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from trainer.config import Masking
from trainer.data import patch_masks
from trainer.data.hashed_random import many_uniforms

GRID = (16, 16)


def draw(masking, number, grid=GRID, ratio=0.75):
    draws = many_uniforms(patch_masks.n_draws(grid), "0:mask", number.to_bytes(4))
    return patch_masks.draw_mask(masking, grid, ratio, draws)


@hypothesis.given(
    masking=st.sampled_from(Masking),
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    ratio=st.floats(0, 1),
    number=st.integers(0, 1000),
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_exactly_the_configured_share_is_hidden(masking, grid, ratio, number):
    mask = draw(masking, number, grid, ratio)
    assert (mask.shape, mask.dtype) == (grid, bool)
    assert mask.sum() == round(ratio * grid[0] * grid[1])


def test_random_masks_hide_the_patches_of_the_lowest_draws():
    order = np.array([0.5, 0.1, 0.9, 0.4, 0.3, 0.8])
    mask = patch_masks.random_mask((2, 3), 3, order)
    assert mask.tolist() == [[False, True, False], [True, True, False]]


def test_block_masks_hide_a_rectangle_and_fill_up_at_random():
    whole = [1.0, 0.5, 0.0, 0.0]  # 4 patches as a square, at the top left
    too_many = [1.0, 0.5, 0.99, 0.99]  # never drawn: nothing is left to hide
    mask = patch_masks.block_mask((4, 4), 4, np.zeros(16), np.array([whole, too_many]))
    assert np.argwhere(mask).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    order = np.arange(16)[::-1] / 16
    mask = patch_masks.block_mask((4, 4), 4, order, np.zeros((0, 4)))
    assert np.flatnonzero(mask).tolist() == [12, 13, 14, 15]


@pytest.mark.parametrize(
    ("masking", "least", "most"), [("random", 0.69, 0.81), ("block", 0.1, 1.0)]
)
def test_every_patch_is_hidden_and_visible_at_times(masking, least, most):
    n = 1000
    shares = sum(draw(Masking(masking), number) for number in range(n)) / n
    assert shares.mean() == pytest.approx(0.75)
    assert least < shares.min() <= shares.max() < most


def test_block_masks_hold_together_and_random_ones_do_not():
    """Share of neighboring pairs that are alike; 0.625 when patches are alone."""
    alike = {
        masking: np.mean(
            [
                np.mean(mask[:, 1:] == mask[:, :-1])
                for mask in (draw(masking, number) for number in range(200))
            ]
        )
        for masking in Masking
    }
    assert alike[Masking.RANDOM] == pytest.approx(0.625, abs=0.01)
    assert alike[Masking.BLOCK] > 0.8


@pytest.mark.parametrize("masking", Masking)
def test_masks_differ(masking):
    assert len({draw(masking, number).tobytes() for number in range(50)}) == 50
