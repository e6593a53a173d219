import collections
import dataclasses
import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from trainer.data.block_shuffle import BlockOrder


def epoch(order, number=0):
    n = len(order.records)
    return [order(position).record for position in range(number * n, (number + 1) * n)]


@hypothesis.given(
    n=st.integers(1, 60),
    n_per_block=st.integers(1, 20),
    n_per_window=st.integers(1, 9),
    rng_seed=st.integers(0, 2**32 - 1),
    n_streams=st.integers(1, 70),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_an_epoch_shows_every_record_once(
    n, n_per_block, n_per_window, rng_seed, n_streams
):
    order = BlockOrder(range(7, 7 + n), n_per_block, n_per_window, rng_seed, n_streams)
    assert sorted(epoch(order)) == sorted(epoch(order, 1)) == list(order.records)


@hypothesis.given(
    n=st.integers(1, 90),
    n_per_block=st.integers(1, 20),
    n_streams=st.integers(1, 40),
    number=st.integers(0, 5),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_each_record_is_read_by_one_stream_with_those_that_the_stream_shows(
    n, n_per_block, n_streams, number
):
    order = BlockOrder(range(7, 7 + n), n_per_block, 2, 0, n_streams)
    stream_to_shown = collections.defaultdict(list)
    for position in range(number * n, (number + 1) * n):
        stream_to_shown[position % n_streams].append(order(position))
    read = []
    for shown in stream_to_shown.values():
        blocks = {one.block for one in shown}
        records = [record for block in blocks for record in block]
        assert sorted(records) == sorted(one.record for one in shown)
        for block in blocks:
            assert (block.start - 7) // n_per_block == (block[-1] - 7) // n_per_block
        assert all(one.record in one.block for one in shown)
        read += blocks
    assert len({*read}) == len(read) < n / n_per_block + 1 + n_streams


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


STREAMS = BlockOrder(range(6_400), 64, 1, 3, n_streams=10)


def test_a_stream_shows_one_window_after_another():
    for stream in range(10):
        shown = [STREAMS(position).block for position in range(stream, 6_400, 10)]
        blocks = [block for block, _ in itertools.groupby(shown)]
        assert len(blocks) == len({*blocks}) == 10  # of 64 records; none comes again


def test_a_batch_of_a_row_for_each_stream_has_no_neighbors():
    """With one window for all, 10 rows would be of one block or two."""
    epoch_blocks = [record // 64 for record in epoch(STREAMS)]
    for start in range(0, 6_400, 10):
        assert len({*epoch_blocks[start : start + 10]}) == 10


def test_neighbors_of_one_batch_are_those_of_the_windows_and_no_more():
    """Of 8 streams with 4 blocks each, pairs of a batch of 64 rows share a block as
    often as 8 rows of a stream that are drawn from 4 blocks.
    """
    order = BlockOrder(range(2**15), 64, 4, 5, n_streams=8)
    blocks = np.array(epoch(order)).reshape(-1, 64) // 64
    n_pairs = np.sum(blocks[:, :, None] == blocks[:, None, :], axis=(1, 2)) - 64
    expected = 8 * 8 * 7 * (64 - 1) / (4 * 64 - 1)  # without replacement
    assert n_pairs.mean() == pytest.approx(expected, rel=0.05)


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
    window = {order(position).record // 256 for position in range(2**30, 2**30 + 200)}
    assert 2 <= len(window) <= 32
