"""The index of sample ids: it names every lot that holds an id, and hardly another."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.engine import id_index
from pipeline.storage import files
from pipeline.storage.tables import LotTables
from tests.support.served_store import serve


def random_ids(n: int, rng_seed: int) -> list[bytes]:
    data = np.random.default_rng(rng_seed).bytes(16 * n)
    return [data[i : i + 16] for i in range(0, 16 * n, 16)]


def write_index(tables: LotTables, name: str, ids: list[bytes]) -> dict[str, int]:
    """Writes the index of a lot; gives the facts of its summary."""
    n_buckets = id_index.count_buckets(len(ids))
    rows = [pa.table({"sample_id": part}) for part in (ids[:5], ids[5:])]
    assert list(id_index.write_beside(rows, tables, name, n_buckets)) == rows
    return {id_index.N_BUCKETS: n_buckets}


@pytest.mark.parametrize("n_ids", [6, 64, 65, 20_000])
def test_every_id_of_a_lot_is_found_and_hardly_another(tmp_path, n_ids):
    tables, ids = LotTables(str(tmp_path)), random_ids(n_ids, 1)
    summaries = {"lot-a": write_index(tables, "lot-a", ids)}
    for one in (*ids[:100], *ids[-100:]):
        assert id_index.find_lots(tables, summaries, one) == ["lot-a"]
    assert not any(
        id_index.find_lots(tables, summaries, one) for one in random_ids(100, 2)
    )


def test_ids_that_many_pairs_share_and_crowded_buckets_are_found(tmp_path):
    tables = LotTables(str(tmp_path))
    shared, crowd = (
        random_ids(1, 1) * 5000,
        [b"\0" * 7 + bytes([i]) for i in range(200)],
    )
    ids = [*shared, *random_ids(3000, 3), *(start + b"\1" * 8 for start in crowd)]
    summaries = {"lot-a": write_index(tables, "lot-a", ids)}
    for one in (shared[0], *ids[-200:]):
        assert id_index.find_lots(tables, summaries, one) == ["lot-a"]


def test_a_lot_without_an_index_may_hold_any_id(tmp_path):
    tables = LotTables(str(tmp_path))
    summaries = {"lot-a": {}, "lot-b": {id_index.N_BUCKETS: 4}}
    found = id_index.find_lots(tables, summaries, b"\1" * 16)
    assert found == ["lot-a", "lot-b"]


@pytest.mark.parametrize(("n_rows", "n_buckets"), [(0, 1), (64, 1), (65, 2), (129, 4)])
def test_a_bucket_has_at_most_64_ids_on_average(n_rows, n_buckets):
    assert id_index.count_buckets(n_rows) == n_buckets


def test_a_look_into_a_lot_is_one_small_request():
    with serve("s3") as store:
        tables = LotTables("s3://bucket/pairs")
        ids = {f"lot-{n}": random_ids(1000, n) for n in range(30)}
        summaries = {name: write_index(tables, name, ids[name]) for name in ids}
        store.forget_requests()
        wanted = ids["lot-7"][3]
        assert id_index.find_lots(tables, summaries, wanted) == ["lot-7"]
        assert sum(store.counts().values()) == 30
        id_index.delete(tables, ids)
        assert not files.list_folder(tables.folder)
