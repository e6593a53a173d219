import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from trainer.data.block_shuffle import BlockOrder


def epoch(order, number=0):
    n = len(order.records)
    return [order(position, 0) for position in range(number * n, (number + 1) * n)]


@hypothesis.given(
    n=st.integers(1, 60),
    n_per_block=st.integers(1, 20),
    n_per_window=st.integers(1, 9),
    rng_seed=st.integers(0, 2**32 - 1),
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_an_epoch_shows_every_record_once(n, n_per_block, n_per_window, rng_seed):
    order = BlockOrder(range(7, 7 + n), n_per_block, n_per_window, rng_seed)
    assert sorted(epoch(order)) == sorted(epoch(order, 1)) == list(order.records)


ORDER = BlockOrder(range(98), 10, 3, 0)  # 10 blocks, of which the last has 8 records


@pytest.mark.parametrize("number", range(5))
def test_a_window_shows_all_of_its_few_blocks_and_nothing_else(number):
    records = epoch(ORDER, number)
    for n_blocks in (3, 3, 3, 1):
        blocks = {record // 10 for record in records[: 9 * n_blocks - 1]}
        assert len(blocks) == n_blocks
        n_records = 10 * n_blocks - 2 * (9 in blocks)
        assert {record // 10 for record in records[:n_records]} == blocks
        records = records[n_records:]
    assert not records


def test_records_of_a_window_are_mixed():
    neighbors = np.diff([record // 10 for record in epoch(ORDER)])
    assert 40 < np.count_nonzero(neighbors) < 80  # 65 expected; 9 if they were not


def test_epochs_and_seeds_have_orders_of_their_own():
    others = [dataclasses.replace(ORDER, rng_seed=seed) for seed in range(20)]
    orders = [epoch(ORDER, 1), *map(epoch, others)]
    assert len(set(map(tuple, orders))) == 21
    # Every block comes first in some order, the short one too.
    first = [order[0] // 10 for order in orders] + [
        epoch(ORDER, number)[0] // 10 for number in range(2, 60)
    ]
    assert set(first) == set(range(10))


def test_any_position_of_a_large_set_is_reached_at_once():
    order = BlockOrder(range(2**31), 256, 16, 5)
    window = {order(position, 0) // 256 for position in range(2**30, 2**30 + 200)}
    assert 2 <= len(window) <= 32
