import pickle

import numpy as np
import pytest

from trainer.data.shared_rows import SharedRows

KINDS = {
    "sample_id": np.empty((0, 16), np.uint8),
    "mask": np.empty((0, 2, 3), bool),
    "image": np.empty((0, 5, 5, 3), np.uint8),
    "alt_text": np.empty((0, 7), np.int32),
}


@pytest.fixture
def shared():
    rows = SharedRows(KINDS, n_rows=4, n_places=3)
    yield rows
    rows.close()


def random_rows(number, n_rows):
    rng = np.random.default_rng(number)
    return {
        name: rng.integers(
            0, 2 if kind.dtype == bool else 200, (n_rows, *kind.shape[1:])
        )
        for name, kind in KINDS.items()
    }


def write(shared, number, n_rows=4):
    for name, rows in shared.begin(number, n_rows).items():
        rows[...] = random_rows(number, n_rows)[name]
    shared.finish(number)


def copied(shared, number, n_rows=4):
    shape_of = {name: (n_rows, *kind.shape[1:]) for name, kind in KINDS.items()}
    out = {name: np.empty(shape_of[name], KINDS[name].dtype) for name in KINDS}
    shared.copy(number, out)
    return out


@pytest.mark.parametrize("n_rows", [1, 4])
def test_what_a_process_writes_another_reads(shared, n_rows):
    process = pickle.loads(pickle.dumps(shared))
    for number in (5, 6, 7):
        write(process, number, n_rows)
    for number in (7, 5, 6):
        found, expected = copied(shared, number, n_rows), random_rows(number, n_rows)
        for name in KINDS:
            np.testing.assert_array_equal(found[name], expected[name])


def test_a_part_whose_place_was_taken_is_an_error(shared):
    write(shared, 1)
    write(shared, 4)
    with pytest.raises(RuntimeError, match="part 4 of the batches: expected part 1"):
        copied(shared, 1)


def test_a_part_that_is_not_finished_is_an_error(shared):
    write(shared, 1)
    shared.begin(4, 4)
    for number in (1, 4):
        with pytest.raises(RuntimeError, match=f"expected part {number}"):
            copied(shared, number)


def test_closing_twice_is_no_error(shared):
    shared.close()
