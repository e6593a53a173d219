import numpy as np

from pipeline.selection.hashed_random import unit_hashes


def test_hashes_depend_on_id_and_salt_alone():
    ids = [bytes([i]) * 16 for i in range(200)]
    hashes = unit_hashes(ids, "a")
    backwards = unit_hashes(ids[::-1], "a")
    np.testing.assert_array_equal(hashes, backwards[::-1])
    assert not np.isin(hashes, unit_hashes(ids, "b")).any()
    assert (hashes >= 0).all()
    assert (hashes < 1).all()
    assert abs(hashes.mean() - 0.5) < 0.1
    assert len(unit_hashes([], "a")) == 0
