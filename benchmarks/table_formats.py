"""Measures tables of lots as plain Parquet, Delta Lake, Iceberg and Lance.

Writes scores and vectors of drawn pairs, lot by lot; asks a question; looks a pair up;
takes it down, and sees when its id is in no byte of the folder any more. Run it where
`deltalake`, `pyiceberg[sql-sqlite,pyarrow]`, `pylance` and `polars` are installed; the
project needs none of them.
"""

import argparse
import datetime
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

N_DIMENSIONS, ROWS_PER_GROUP = 128, 32_768
COUNT = "alignment_score >= 0.9"


def lot_rows(number: int, n_rows: int, vector: pa.DataType) -> pa.Table:
    """Drawn rows of one lot."""
    rng = np.random.default_rng(number)
    vectors = rng.standard_normal((n_rows, N_DIMENSIONS), np.float32)
    values = pa.array(vectors.astype(vector.to_pandas_dtype()).ravel())
    return pa.table(
        {
            "lot": pa.array([f"web-{number:05d}"] * n_rows),
            "sample_id": pa.array([rng.bytes(16) for _ in range(n_rows)], pa.binary()),
            "alignment_score": rng.random(n_rows, np.float32),
            "embedding": pa.FixedSizeListArray.from_arrays(values, N_DIMENSIONS),
        }
    )


class Plain:
    """A Parquet file for each lot."""

    vector = pa.float16()

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def add(self, rows: pa.Table) -> None:
        self._write(rows["lot"][0].as_py(), rows.drop_columns(["lot"]))

    def _write(self, lot: str, rows: pa.Table) -> None:
        path = self.folder / f"{lot}.parquet"
        temporary = path.with_suffix(".tmp")
        options = {"compression": "zstd", "use_dictionary": False}
        pq.write_table(rows, temporary, ROWS_PER_GROUP, **options)
        temporary.rename(path)

    def _scan(self):
        import polars

        return polars.scan_parquet(self.folder / "*.parquet")

    def count(self) -> int:
        return _count(self._scan())

    def find(self, sample_id: bytes) -> int:
        return _find(self._scan(), sample_id)

    def take_down(self, lot: str, sample_id: bytes) -> None:
        rows = pq.read_table(self.folder / f"{lot}.parquet")
        self._write(lot, _without(rows, sample_id))

    def clean(self) -> None:
        pass


class Delta(Plain):
    """Delta Lake, whose log lies beside the files; it has no float16 and no vectors."""

    vector = pa.float32()

    def add(self, rows: pa.Table) -> None:
        import deltalake

        deltalake.write_deltalake(
            str(self.folder), _with_lists(rows), mode="append", partition_by=["lot"]
        )

    def _scan(self):
        import polars

        return polars.scan_delta(str(self.folder))

    def take_down(self, lot: str, sample_id: bytes) -> None:
        import deltalake

        table = deltalake.DeltaTable(str(self.folder))
        rows = table.to_pyarrow_table(filters=[("lot", "=", lot)])
        rows = _without(rows, sample_id)
        of_lot = f"lot = '{lot}'"
        deltalake.write_deltalake(table, rows, mode="overwrite", predicate=of_lot)

    def clean(self) -> None:
        import deltalake

        table = deltalake.DeltaTable(str(self.folder))
        table.vacuum(0, dry_run=False, enforce_retention_duration=False)


class Iceberg(Plain):
    """Iceberg, with a catalog in SQLite; it has no float16 and no vectors."""

    vector = pa.float32()

    def __init__(self, folder: pathlib.Path) -> None:
        from pyiceberg.catalog.sql import SqlCatalog

        super().__init__(folder)
        place = f"sqlite:///{folder}/catalog.db"
        catalog = SqlCatalog("c", uri=place, warehouse=f"file://{folder}")
        catalog.create_namespace("n")
        self.catalog = catalog
        self.table: Any = None

    def add(self, rows: pa.Table) -> None:
        rows = _with_lists(rows)
        if self.table is None:
            self.table = self.catalog.create_table("n.t", rows.schema)
            with self.table.update_spec() as spec:
                spec.add_identity("lot")
        self.table.append(rows)

    def _scan(self):
        import polars

        return polars.scan_iceberg(self.table)

    def take_down(self, lot: str, sample_id: bytes) -> None:
        from pyiceberg.expressions import EqualTo

        of_lot = EqualTo("lot", lot)
        rows = self.table.scan(of_lot).to_arrow()
        self.table.overwrite(_without(rows, sample_id), of_lot)

    def clean(self) -> None:
        now = datetime.datetime.now()
        self.table.maintenance.expire_snapshots().older_than(now).commit()


class Lance(Plain):
    """Lance, whose manifests lie beside the files."""

    def add(self, rows: pa.Table) -> None:
        import lance

        self.data = lance.write_dataset(rows, str(self.folder / "t"), mode="append")

    def count(self) -> int:
        return self.data.count_rows(COUNT)

    def find(self, sample_id: bytes) -> int:
        return self.data.to_table(filter=_equals(sample_id)).num_rows

    def take_down(self, lot: str, sample_id: bytes) -> None:
        self.data.delete(_equals(sample_id))

    def clean(self) -> None:
        self.data.optimize.compact_files(materialize_deletions_threshold=0.0)
        self.data.cleanup_old_versions(datetime.timedelta(0))


def _equals(sample_id: bytes) -> str:
    return f"sample_id = X'{sample_id.hex()}'"


def _count(frame) -> int:
    import polars

    return frame.filter(polars.sql_expr(COUNT)).select(polars.len()).collect().item()


def _find(frame, sample_id: bytes) -> int:
    import polars

    return len(frame.filter(polars.col("sample_id") == sample_id).collect())


def _without(rows: pa.Table, sample_id: bytes) -> pa.Table:
    ids = rows["sample_id"].to_pylist()
    return rows.filter(pa.array([one != sample_id for one in ids]))


def _with_lists(rows: pa.Table) -> pa.Table:
    column = rows["embedding"].cast(pa.list_(pa.float32()))
    return rows.set_column(3, "embedding", column)


def seconds(work: Callable, *arguments: object) -> tuple[float, object]:
    started_s = time.perf_counter()
    found = work(*arguments)
    return time.perf_counter() - started_s, found


def traces(folder: pathlib.Path, needle: bytes) -> int:
    """Files that have an id in them; none of them packs ids."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return sum(needle in path.read_bytes() for path in paths)


def measure(
    kind: type[Plain], folder: pathlib.Path, n_lots: int, n_rows: int
) -> Iterator:
    """Yields what a row of the results says."""
    folder.mkdir(parents=True)
    tables = kind(folder)
    first = lot_rows(3, n_rows, kind.vector)
    gone = first["sample_id"][n_rows // 2].as_py()
    written_s = 0.0
    for number in range(n_lots):
        rows = lot_rows(number, n_rows, kind.vector)
        written_s += seconds(tables.add, rows)[0]
    paths = [path for path in folder.rglob("*") if path.is_file()]
    yield f"{sum(path.stat().st_size for path in paths) / 2**20:.0f} MiB"
    yield f"{len(paths)}"
    yield f"{written_s:.1f} s"
    yield f"{min(seconds(tables.count)[0] for _ in range(3)):.3f} s"
    yield f"{min(seconds(tables.find, gone)[0] for _ in range(3)):.3f} s"
    assert tables.find(gone) == 1
    yield f"{seconds(tables.take_down, 'web-00003', gone)[0]:.2f} s"
    assert tables.find(gone) == 0
    yield f"{traces(folder, gone)}"
    yield f"{seconds(tables.clean)[0]:.2f} s"
    yield f"{traces(folder, gone)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--lots", type=int, default=10)
    parser.add_argument("--rows", type=int, default=100_000, help="of a lot")
    command = parser.parse_args()
    for kind in (Plain, Delta, Iceberg, Lance):
        folder = command.folder.absolute() / kind.__name__
        shutil.rmtree(folder, ignore_errors=True)
        cells = measure(kind, folder, command.lots, command.rows)
        print(" | ".join([f"| {kind.__name__}", *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
