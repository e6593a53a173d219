"""Work ahead: results in order, and bounds on what is read ahead."""

import pytest

from pipeline.storage import prefetch


def n_ahead_of_first_result(monkeypatch, item_bytes: int, n_ahead: int) -> int:
    monkeypatch.setattr(prefetch, "_MAX_BYTES_AHEAD", 100)
    read = []

    def items():
        for item in range(50):
            read.append(item)
            yield item

    results = prefetch.map_ahead(str, items(), n_ahead, lambda item: item_bytes)
    assert next(results) == "0"
    n_read = len(read)
    assert list(results) == [str(item) for item in range(1, 50)]
    return n_read


@pytest.mark.parametrize(
    ("item_bytes", "n_ahead", "n_read"),
    [(0, 8, 9), (30, 8, 4), (100, 8, 2), (1000, 8, 1), (30, 2, 3)],
)
def test_items_are_read_ahead_up_to_their_number_and_bytes(
    monkeypatch, item_bytes, n_ahead, n_read
):
    assert n_ahead_of_first_result(monkeypatch, item_bytes, n_ahead) == n_read


def test_an_error_comes_where_its_result_would_be():
    results = prefetch.map_ahead(lambda item: 1 // item, [1, 0, 1], 8)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
