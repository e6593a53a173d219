import dataclasses

import grain
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from trainer.config import DataConfig
from trainer.data.block_shuffle import BlockOrder
from trainer.data.row_order import RowOrder

CONFIG = DataConfig(tokenizer="", batch_size=16, granularity_weights={})


def in_blocks(n_streams=1, batch_size=16):
    return dataclasses.replace(
        CONFIG,
        batch_size=batch_size,
        n_records_per_block=5,
        n_blocks_per_window=2,
        n_streams=n_streams,
    )


def grain_rows(parts, weights, config, rng_seed):
    """The order of runs before there were streams, by Grain's own steps."""
    streams = []
    for number, part in enumerate(parts):
        seed = (rng_seed + number) % 2**32
        records = grain.MapDataset.range(part.start, part.stop)
        if config.n_records_per_block == 1:
            stream = records.seed(seed).shuffle().repeat()
        else:
            order = BlockOrder(part, 5, 2, seed)
            stream = records.repeat().map_with_index(lambda p, _, o=order: o(p).record)
        streams.append(stream.map_with_index(lambda position, i: (position, i)))
    return streams[0] if len(parts) == 1 else grain.MapDataset.mix(streams, weights)


@pytest.mark.parametrize("config", [CONFIG, in_blocks()], ids=["single", "blocks"])
@hypothesis.given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    weights=st.lists(st.floats(0.1, 9), min_size=3, max_size=3),
    rng_seed=st.integers(0, 2**32 - 1),
)
@hypothesis.settings(max_examples=20, deadline=None)
def test_one_stream_is_the_order_that_older_runs_resume_in(
    config, sizes, weights, rng_seed
):
    ends = np.cumsum([0, *sizes]).tolist()
    parts = [range(*ends[i : i + 2]) for i in range(len(sizes))]
    ours = RowOrder(parts, weights[: len(parts)], config, rng_seed)
    theirs = grain_rows(parts, weights[: len(parts)], config, rng_seed)
    for position in (*range(100), 10**6, 10**9 + 7):
        row = ours(position)
        assert (row.position, row.record) == theirs[position]


def rows_of(order, n):
    return [order(position) for position in range(n)]


SETS = range(60), range(60, 300)


@pytest.mark.parametrize("n_streams", [1, 2, 4, 16])
def test_every_batch_has_the_shares_of_its_sets(n_streams):
    order = RowOrder(SETS, [1, 3], in_blocks(n_streams), 0)
    rows = np.array([row.record for row in rows_of(order, 16 * 40)]).reshape(-1, 16)
    assert ((rows < 60).sum(axis=1) == 4).all()


@pytest.mark.parametrize("n_streams", [2, 4, 16])
def test_streams_of_a_mixture_show_each_set_evenly(n_streams):
    """After whole epochs of both sets, of 5 and of 20 batches of 16 rows."""
    order = RowOrder(SETS, [1, 3], in_blocks(n_streams), 0)
    rows = rows_of(order, 16 * 60)
    n_shown = np.bincount([row.record for row in rows], minlength=300)
    for part, n_rows in zip(SETS, (240, 720), strict=True):
        shown = n_shown[part.start : part.stop]
        assert shown.sum() == n_rows
        # Streams are in step but for a row of a set.
        assert np.abs(shown - n_rows / len(part)).max() <= 1
        assert np.count_nonzero(shown - n_rows // len(part)) <= 2 * n_streams


@pytest.mark.parametrize("sets", [(range(60),), SETS])
def test_a_stream_reads_blocks_that_no_other_reads(sets):
    order = RowOrder(sets, [1, 3][: len(sets)], in_blocks(4), 0)
    readers = {}
    for position, row in enumerate(rows_of(order, 16 * 30)):
        part = next(part for part in sets if row.record in part)
        key = row.position // len(part), row.block
        readers.setdefault(key, set()).add(position % 4)
    assert len(readers) > 50
    assert {len(streams) for streams in readers.values()} == {1}


def test_sets_have_orders_of_their_own():
    order = RowOrder([range(20), range(20, 40)], [1, 1], in_blocks(4), 0)
    found = [[], []]
    for row in rows_of(order, 40):
        found[row.record >= 20].append(row.record % 20)
    assert sorted(found[0]) == sorted(found[1])
    assert found[0] != found[1]


def test_0_streams_are_one_for_each_row_of_a_batch():
    one, other = (RowOrder(SETS, [1, 3], in_blocks(n), 0) for n in (0, 16))
    assert rows_of(one, 99) == rows_of(other, 99)


def test_streams_do_not_matter_to_single_records():
    streams = dataclasses.replace(CONFIG, n_streams=4)
    one, other = (RowOrder(SETS, [1, 3], c, 0) for c in (CONFIG, streams))
    assert rows_of(one, 99) == rows_of(other, 99)
