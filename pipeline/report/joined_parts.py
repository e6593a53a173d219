"""The parts of all lots as one table, most of it from one file.

In: the parts of the report, one small table a lot. Out: their rows, in the order of
lots. `RUN/report/parts-FINGERPRINT/parts.cache` has the parts that are as they were
when it was written: ten thousand small tables take long to read and to parse.
"""

import io
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine.summaries import Summaries
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.prefetch import map_ahead
from pipeline.storage.tables import LotTables

CACHE_NAME = "parts.cache"  # which no pattern of tables matches

_MIN_CACHED = 64  # fewer are read as fast as one
_N_READ_AT_ONCE = 64
_LOTS = b"lots"  # in the metadata of the file: name and digest of each part, and rows

Identity = tuple[str, str]  # of a part: name of the lot, digest of the table


def read(
    tables: LotTables, summaries: Summaries, lots: Sequence[Lot]
) -> tuple[pa.Table, np.ndarray]:
    """The rows of the parts of lots, and the position of the lot of each row."""
    path = files.join(tables.folder, CACHE_NAME)
    wanted = [(lot.name, summaries[lot.name]["sha256"]) for lot in lots]
    cached = _read_cache(path)
    missing = [one for one in wanted if one not in cached]
    names = [name for name, _ in missing]
    read = map_ahead(tables.read, names, _N_READ_AT_ONCE, n_threads=_N_READ_AT_ONCE)
    found = cached | dict(zip(missing, read, strict=True))
    parts = [found[one] for one in wanted]
    n_rows = [len(part) for part in parts]
    joined = pa.concat_tables(parts).combine_chunks()
    if len(wanted) >= _MIN_CACHED and wanted != list(cached):
        _write_cache(path, joined, wanted, n_rows)
    return joined, np.repeat(np.arange(len(lots)), n_rows)


def _read_cache(path: str) -> dict[Identity, pa.Table]:
    """What the file has; nothing if it is not there or cannot be read."""
    try:
        table = pq.read_table(io.BytesIO(files.read(path)))
        lots = json.loads(table.schema.metadata[_LOTS])
    except (KeyError, OSError, TypeError, ValueError):
        return {}
    table, first, found = table.replace_schema_metadata(), 0, {}
    for name, digest, n_rows in lots:
        found[name, digest] = table.slice(first, n_rows)
        first += n_rows
    return found


def _write_cache(
    path: str, joined: pa.Table, lots: Sequence[Identity], n_rows: Sequence[int]
) -> None:
    rows = [(*lot, n) for lot, n in zip(lots, n_rows, strict=True)]
    table = joined.replace_schema_metadata({_LOTS: json.dumps(rows)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    files.write(path, buffer.getvalue())
