"""Parquet files that hold images: their rows to pairs, and what damages them.

In: a binary file and the columns that a source names. Out: batches of rows, pairs, and
the images of chosen ones, whatever type they were stored as.
"""

import contextlib
import typing
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.curation import ImageTextSource, Limits
from pipeline.sources.columns import (
    TEXT_FIELDS,
    Columns,
    DamageError,
    ShardError,
    plain_type,
)
from pipeline.sources.raw_pairs import Parts, RawPair
from pipeline.sources.recorded import Recorded
from pipeline.sources.tars import Member
from recipes.validation import one_line

_MAX_ROWS_PER_BATCH = 32  # held in memory: some MB of images
_MAX_BATCH_BYTES = 64 << 20  # unless a single value is larger
_READ_BUFFER_BYTES = 1 << 20
_MAX_PATH_CHARS = 100


@contextlib.contextmanager
def open_parquet(
    file: typing.Any, metadata: pq.FileMetaData | None = None
) -> Iterator[pq.ParquetFile]:
    """A Parquet file that is read in small pieces; its damage is a DamageError.

    Args:
      file: a binary file.
      metadata: of the file, if they have been read before.
    """
    try:
        yield pq.ParquetFile(
            file,
            metadata=metadata,
            buffer_size=_READ_BUFFER_BYTES,
            pre_buffer=False,
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # Arrow's own OSError is damage; one with a code, or a subclass, is a failure of
        # the file system or the network.
        is_plain = type(error) is OSError and error.errno is None
        if isinstance(error, OSError) and not is_plain:
            raise
        message = " ".join(str(error).split())
        raise DamageError(f"Parquet file damaged: {message}") from error


def read_pairs(
    file: typing.BinaryIO, source: ImageTextSource, limits: Limits
) -> Iterator[RawPair]:
    """Reads one pair per row.

    Raises:
      ShardError: where the file is damaged, or if it lacks columns.
    """
    with open_parquet(file) as parquet:
        columns = Columns.find(parquet, source)
        for first, batch in read_batches(parquet, columns.names):
            for row, parts in enumerate(_read_parts(batch, columns), first):
                key, image, alt_text, recorded = parts
                yield Parts(
                    key=_label(key) or str(row),
                    image=_make_member(_image_bytes(image), row),
                    alt_text=_make_member(_text(alt_text), row),
                    recorded=Recorded.of(recorded),
                    offset=row,
                    absence=_describe_path(image),
                ).to_pair(source, limits)


def image_bytes_of(batch: pa.RecordBatch, column: str) -> list[bytes]:
    """The encoded images of a batch; b"" where there is none."""
    return [_image_bytes(image) or b"" for image in _to_python(batch, column)]


def read_batches(
    parquet: pq.ParquetFile,
    columns: Sequence[str],
    chosen: frozenset[int] | None = None,
    *,
    may_repeat: bool = True,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields batches, each with its first row in the file.

    Row groups are read one by one, so that a damaged one costs none before it. Those
    without any `chosen` row are not read, and such batches are left out.

    Args:
      may_repeat: whether a dictionary may give many rows one value.
    """
    first = 0
    for group in range(parquet.num_row_groups):
        metadata = parquet.metadata.row_group(group)
        n_rows = metadata.num_rows
        if chosen is None or not chosen.isdisjoint(range(first, first + n_rows)):
            row = first
            n_rows_a_batch = _rows_per_batch(metadata, may_repeat)
            for batch in parquet.iter_batches(n_rows_a_batch, [group], columns=columns):
                if chosen is None or not chosen.isdisjoint(
                    range(row, row + len(batch))
                ):
                    yield row, batch
                row += len(batch)
        first += n_rows


def _rows_per_batch(row_group: pq.RowGroupMetaData, may_repeat: bool) -> int:
    """No value is larger than its row group, but each row can repeat the largest.

    If none can, the mean counts: all rows together are no larger than the group, unless
    values are stored as differences, as no writer of images does. Only the group is
    asked: where the metadata of a column are damaged, Arrow ends the process.
    """
    n_bytes = max(1, row_group.total_byte_size)
    if not may_repeat:
        n_bytes = max(1, n_bytes // max(1, row_group.num_rows))
    return max(1, min(_MAX_ROWS_PER_BATCH, _MAX_BATCH_BYTES // n_bytes))


def _read_parts(
    batch: pa.RecordBatch, columns: Columns
) -> Iterator[tuple[object, object, object, dict[str, object]]]:
    """Key, image, alt text and what else was recorded of each row."""
    main = [_to_python(batch, name) for name in (columns.key, columns.image)]
    main.append(_to_python(batch, columns.alt_text))
    records: list[dict[str, object]] = [{} for _ in range(len(batch))]
    for name in columns.recorded:
        for record, value in zip(records, _to_python(batch, name), strict=True):
            record[name] = _decode(value)
    yield from zip(*main, records, strict=True)


def _to_python(batch: pa.RecordBatch, column: str) -> list:
    """Values of Python, with bytes in place of texts; None where there are none."""
    if not column:
        return [None] * len(batch)
    values = batch.column(column)
    try:
        return values.cast(plain_type(values.type)).to_pylist()
    except pa.ArrowException:
        raise
    except ValueError as error:  # such as of fields that share a name
        raise ShardError(f"column {column!r}: {error}") from error


def _decode(value: object) -> object:
    """A value with texts in place of bytes."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, tuple):  # of a map
        return tuple(map(_decode, value))
    if isinstance(value, dict):
        return {name: _decode(item) for name, item in value.items()}
    return value


def _label(key: object) -> str:
    """Numbers of a column with gaps are floats to pandas."""
    if isinstance(key, float) and key.is_integer():
        return str(int(key))
    is_missing = key is None or key != key
    return "" if is_missing else str(_decode(key))


def _image_bytes(image: object) -> bytes | None:
    value = image.get("bytes") if isinstance(image, dict) else image
    return value if isinstance(value, bytes) else None


def _describe_path(image: object) -> str:
    """Says where an image lies that is not in the file."""
    path = image.get("path") if isinstance(image, dict) else None
    if not isinstance(path, bytes) or not path:
        return ""
    shown = one_line(path.decode(errors="backslashreplace"), _MAX_PATH_CHARS)
    return f"only its path {shown!r} is in the file, not its bytes"


def _text(value: object) -> bytes | None:
    """A text; of a list the first that is not blank."""
    if isinstance(value, list):
        return next(filter(_is_text, map(_text, value)), None)
    if isinstance(value, dict):
        return _text([value.get(name) for name in TEXT_FIELDS])
    return value if isinstance(value, bytes) else None


def _is_text(value: bytes | None) -> bool:
    return bool(value and value.strip(b" \t\r\n\0"))


def _make_member(value: bytes | None, row: int) -> Member | None:
    return None if value is None else Member("", row, len(value), value)
