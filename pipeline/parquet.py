"""Parquet files that hold images: their columns, their rows, and what damages them.

In: a binary file and the columns that a source names. Out: batches of rows, and the
bytes or texts of a column, whatever type they were stored as.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import ImageTextSource

# Columns of Parquet files, the usual names first.
_IMAGE_COLUMNS = ("jpg", "image", "png", "webp")
_ALT_TEXT_COLUMNS = ("caption", "text", "alt_text", "TEXT")
_KEY_COLUMNS = ("__key__", "key", "id")
URL_COLUMNS = ("url", "URL")
ROBOTS_COLUMNS = ("x_robots_tag", "X-Robots-Tag", "robots")
_MAX_ROWS_PER_BATCH = 32  # held in memory: some MB of images
_MAX_BATCH_BYTES = 64 << 20  # unless a single value is larger
_READ_BUFFER_BYTES = 1 << 20


class ShardError(ValueError):
    """Why the rest of a shard, or the images of it, cannot be read."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns of a Parquet file; "" where there is none."""

    image: str
    alt_text: str
    key: str
    url: str
    robots: str

    @classmethod
    def find(cls, schema: pa.Schema, source: ImageTextSource) -> "Columns":
        """Raises ShardError without images, or without a column the source names."""
        image = _find_column(schema, source.image_column, _IMAGE_COLUMNS, _is_image)
        if not image:
            raise ShardError(f"no column with images among {schema.names}")
        return cls(
            image=image,
            alt_text=_find_column(
                schema, source.alt_text_column, _ALT_TEXT_COLUMNS, _is_bytes
            ),
            key=_find_column(schema, source.key_column, _KEY_COLUMNS, _is_label),
            url=_find_column(schema, "", URL_COLUMNS, _is_label),
            robots=_find_column(schema, "", ROBOTS_COLUMNS, _is_label_or_list),
        )


@contextlib.contextmanager
def open_parquet(file: typing.BinaryIO) -> Iterator[pq.ParquetFile]:
    """A Parquet file that is read in small pieces; its damage is a ShardError."""
    try:
        yield pq.ParquetFile(file, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # Arrow's own OSError is damage; one with a code, or a subclass, is a failure of
        # the file system or the network.
        is_plain = type(error) is OSError and error.errno is None
        if isinstance(error, OSError) and not is_plain:
            raise
        message = " ".join(str(error).split())
        raise ShardError(f"Parquet file damaged: {message}") from error


def read_batches(
    parquet: pq.ParquetFile,
    columns: Sequence[str],
    chosen: frozenset[int] | None = None,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields batches, each with its first row in the file.

    Row groups are read one by one, so that a damaged one costs none before it. Those
    without any `chosen` row are not read.
    """
    first = 0
    for group in range(parquet.num_row_groups):
        metadata = parquet.metadata.row_group(group)
        n_rows = metadata.num_rows
        if chosen is None or not chosen.isdisjoint(range(first, first + n_rows)):
            row = first
            n_rows_a_batch = _rows_per_batch(metadata)
            for batch in parquet.iter_batches(n_rows_a_batch, [group], columns=columns):
                yield row, batch
                row += len(batch)
        first += n_rows


def _rows_per_batch(row_group: pq.RowGroupMetaData) -> int:
    """No value is larger than its row group, but each row can repeat the largest.

    Only the group is asked: where the metadata of a column are damaged, Arrow ends the
    process.
    """
    n_bytes = max(1, row_group.total_byte_size)
    return max(1, min(_MAX_ROWS_PER_BATCH, _MAX_BATCH_BYTES // n_bytes))


def byte_values(batch: pa.RecordBatch, column: str) -> list[bytes | None]:
    """Texts come as bytes too: Arrow would stop at the first that is no UTF-8."""
    if not column:
        return [None] * len(batch)
    values = batch.column(column)
    if pa.types.is_struct(values.type):
        values = pc.struct_field(values, "bytes")
    return values.cast(pa.large_binary()).to_pylist()


def labels(batch: pa.RecordBatch, column: str) -> list[str]:
    """One text a row; the items of a list become one, with commas between."""
    if not column:
        return [""] * len(batch)
    values = batch.column(column)
    if pa.types.is_integer(values.type):
        return ["" if value is None else str(value) for value in values.to_pylist()]
    if _is_list_of_bytes(values.type):
        lists = values.cast(pa.large_list(pa.large_binary())).to_pylist()
        return [", ".join(map(_decoded, items or ())) for items in lists]
    return [_decoded(value) for value in byte_values(batch, column)]


def _decoded(value: bytes | None) -> str:
    return (value or b"").decode(errors="backslashreplace")


def _find_column(
    schema: pa.Schema,
    named: str,
    usual: Sequence[str],
    is_usable: Callable[[pa.DataType], bool],
) -> str:
    for name in (named,) if named else usual:
        if schema.names.count(name) == 1 and is_usable(schema.field(name).type):
            return name
    if named:
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise ShardError(f"no usable column {named!r} among {found}")
    return ""


def _is_image(column_type: pa.DataType) -> bool:
    """Bytes, or a struct with `bytes` as Hugging Face writes it."""
    if pa.types.is_struct(column_type):
        index = column_type.get_field_index("bytes")
        return index >= 0 and _is_image(column_type.field(index).type)
    of_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(is_type(column_type) for is_type in of_bytes)


def _is_bytes(column_type: pa.DataType) -> bool:
    of_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_type(column_type) for is_type in of_text) or _is_image(column_type)


def _is_label(column_type: pa.DataType) -> bool:
    return _is_bytes(column_type) or pa.types.is_integer(column_type)


def _is_label_or_list(column_type: pa.DataType) -> bool:
    return _is_label(column_type) or _is_list_of_bytes(column_type)


def _is_list_of_bytes(column_type: pa.DataType) -> bool:
    is_list = pa.types.is_list(column_type) or pa.types.is_large_list(column_type)
    return (
        is_list
        and not pa.types.is_struct(column_type.value_type)
        and _is_bytes(column_type.value_type)
    )
