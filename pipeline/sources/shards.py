"""Source shards to pairs, and back to the bytes of chosen images.

In: img2dataset's webdataset tars (KEY.jpg, KEY.txt, KEY.json), its Parquet files, and
Parquet files of Hugging Face image sets, on any file system that Beam knows. Out: all
pairs in the order of the shard, one at a time. What is wrong with a pair is its error;
what is wrong with a shard is the error of one last pair, which stands for the rest.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from concurrent import futures

from pipeline.config.curation import ImageTextSource, Limits
from pipeline.records import Pair, content_hash
from pipeline.sources import parquet, tar_pairs, tars
from pipeline.sources.columns import Columns, DamageError, ShardError
from pipeline.sources.raw_pairs import RawPair
from pipeline.storage import files, patterns

_MAX_CHECKED = 1_000  # shards whose columns are looked at before any work
_N_CHECKED_AT_ONCE = 16
_MAX_STEM_BYTES = 80  # of the 255 that a file name can have


@dataclasses.dataclass(frozen=True)
class Unit:
    """One source shard: the unit of work of every stage."""

    source: ImageTextSource
    uri: str
    mark: str = ""  # of what the shard held when it was listed: `files.mark`

    @property
    def name(self) -> str:
        """Names the tables of the shard: a shard that changed has none yet."""
        return f"{self.shard_name}-{_short_hash(self.mark.encode())}"

    @property
    def shard_name(self) -> str:
        """Names the shard, whatever it holds: its file name and a hash of its path."""
        path = self.uri.encode(errors="surrogateescape")
        stem = path.rstrip(b"/").rsplit(b"/", 1)[-1].rsplit(b".", 1)[0]
        stem_text = stem[:_MAX_STEM_BYTES].decode(errors="ignore")
        return f"{stem_text}-{_short_hash(path)}"

    def has_changed(self) -> bool:
        """Whether the shard holds something else since it was listed; not if it is
        gone."""
        return files.mark(self.uri) not in ("", self.mark)


def shard_name_of(unit_name: str) -> str:
    """`Unit.shard_name` of a `Unit.name`."""
    return unit_name.rpartition("-")[0]


def _short_hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=6).hexdigest()


def list_units(source: ImageTextSource, known: Sequence[str] = ()) -> tuple[Unit, ...]:
    """The shards of a source, sorted by path.

    Args:
      known: sorted paths of an earlier listing, which make this one faster.

    Raises:
      ValueError: if the glob matches nothing, or files that are no shards.
    """
    try:
        uri_to_mark = patterns.find_marks(source.pattern, "shards", known)
    except ValueError as error:
        raise ValueError(f"{source.name}={error}") from error
    for uri in uri_to_mark:
        if not uri.endswith((".tar", ".parquet")):
            raise ValueError(
                f"{source.name}={' '.join(patterns.as_tuple(source.pattern))}: expected"
                f" .tar or .parquet files only, but it matches {uri}"
            )
    return tuple(Unit(source, uri, mark) for uri, mark in uri_to_mark.items())


def check_columns(units: Sequence[Unit]) -> None:
    """Raises ValueError if a shard can be read but lacks a column its source needs.

    Of very many shards some are looked at, from all over the list: a shard that differs
    is an error when it is scored, too.
    """
    parquets = [unit for unit in units if not _is_tar(unit)]
    chosen = parquets[:: max(1, math.ceil(len(parquets) / _MAX_CHECKED))]
    with futures.ThreadPoolExecutor(_N_CHECKED_AT_ONCE) as executor:
        for unit, error in zip(
            chosen, executor.map(_column_error, chosen), strict=True
        ):
            if error:
                raise ValueError(f"{unit.source.name}={unit.uri}: {error}")


def _column_error(unit: Unit) -> str:
    """The error of the columns; "" for a damaged shard, which scoring counts."""
    try:
        with (
            files.open_for_reading(unit.uri) as file,
            parquet.open_parquet(file) as opened,
        ):
            Columns.find(opened, unit.source)
    except DamageError:
        return ""
    except ShardError as error:
        return str(error)
    except OSError:
        return ""
    return ""


def read_pairs(unit: Unit, limits: Limits) -> Iterator[RawPair]:
    """Reads every pair of a shard in its order; nothing is decoded yet.

    A shard that is missing or damaged ends in one pair with the error.

    Raises:
      OSError: on a failure that another attempt may cure, such as of a network.

    >>> import io, os, tarfile, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "00000.tar")
    >>> with tarfile.open(path, "w") as tar:
    ...     for name, data in (("0.jpg", b"..."), ("0.txt", b"a dog"), ("1.txt", b"?")):
    ...         member = tarfile.TarInfo(name)
    ...         member.size = len(data)
    ...         tar.addfile(member, io.BytesIO(data))
    >>> for pair in read_pairs(Unit(ImageTextSource("web", path), path), Limits()):
    ...     print([pair.key, pair.text, pair.error])
    ['0', 'a dog', '']
    ['1', '?', 'no image']
    """
    try:
        if _is_tar(unit):
            with files.open_stream(unit.uri) as file:
                yield from tar_pairs.read_pairs(file, unit.source, limits)
        else:
            with files.open_for_reading(unit.uri) as file:
                yield from parquet.read_pairs(file, unit.source, limits)
    except (tars.TarError, ShardError) as error:
        yield RawPair(error=str(error))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        yield RawPair(error=f"shard cannot be opened: {error.strerror or error}")


def read_images(unit: Unit, pairs: Sequence[Pair]) -> Iterator[bytes]:
    """Reads the encoded images of readable pairs of a unit, in their order.

    Args:
      pairs: in the order of the shard.

    Raises:
      ShardError: if an image is not the one that was scored.
    """
    read = _read_tar_images if _is_tar(unit) else _read_parquet_images
    try:
        for pair, image in zip(pairs, read(unit, pairs), strict=True):
            if content_hash(image) != pair.image_hash:
                raise ShardError(f"the image of {pair.key!r} is another one")
            yield image
    except ValueError as error:
        raise ShardError(
            f"{unit.uri} has changed since it was scored: {error}"
        ) from error


def _read_tar_images(unit: Unit, pairs: Sequence[Pair]) -> Iterator[bytes]:
    return files.read_ranges(unit.uri, [(pair.offset, pair.n_bytes) for pair in pairs])


def _read_parquet_images(unit: Unit, pairs: Sequence[Pair]) -> Iterator[bytes]:
    rows = [pair.offset for pair in pairs]
    with files.open_for_reading(unit.uri) as file:
        yield from parquet.read_images(file, unit.source, rows)


def _is_tar(unit: Unit) -> bool:
    return unit.uri.endswith(".tar")
