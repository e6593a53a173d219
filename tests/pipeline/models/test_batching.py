import numpy as np
import pytest

from pipeline.models.batching import check_options, fixed_batches


def test_only_the_last_batch_is_padded_with_zeros():
    batches = fixed_batches(np.array([[1], [2], [3]]), 2)
    assert [batch.tolist() for batch in batches] == [[[1], [2]], [[3], [0]]]


def test_no_rows_make_no_batch():
    assert list(fixed_batches(np.zeros((0, 3)), 2)) == []


@pytest.mark.parametrize(
    ("batch_size", "dtype", "problem"),
    [
        (0, "float32", "batch_size=0: expected at least 1"),
        (1, "float16", "dtype='float16': expected 'float32' or 'bfloat16'"),
    ],
)
def test_wrong_options_are_named(batch_size: int, dtype: str, problem: str):
    with pytest.raises(ValueError, match=f"^{problem}$"):
        check_options(batch_size, dtype)
