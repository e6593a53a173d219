"""Source shards to pairs, and back to the bytes of chosen images.

In: img2dataset's webdataset tars (KEY.jpg, KEY.txt, KEY.json), its Parquet files, and
Parquet files of Hugging Face image sets, on any file system that Beam knows. Out: all
pairs in the order of the shard, one at a time. What is wrong with a pair is its error;
what is wrong with a shard is the error of one last pair, which stands for the rest.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures

from pipeline.config.curation import ImageTextSource, Limits
from pipeline.records import Pair, content_hash
from pipeline.sources import chosen_rows, parquet, tar_pairs, tars
from pipeline.sources.columns import Columns, DamageError, ShardError
from pipeline.sources.raw_pairs import RawPair
from pipeline.storage import files, patterns
from pipeline.storage.chosen_ranges import Span, read_spans
from pipeline.storage.file_errors import CANNOT_BE_OPENED
from pipeline.storage.prefetch import map_ahead

_MAX_CHECKED = 1_000  # shards whose columns are looked at before any work
_N_CHECKED_AT_ONCE = 16
_N_PLANNED_AHEAD = 32  # shards whose chosen images are looked for
_DIGEST_BYTES = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """One source file: the unit of reading."""

    source: ImageTextSource
    uri: str
    mark: str = ""  # of what it held when it was listed: `files.mark`

    @property
    def digest(self) -> str:
        """Identifies the shard, before a hyphen, and behind it what the shard holds."""
        path = self.uri.encode(errors="surrogateescape")
        return f"{_short_hash(path)}-{_short_hash(self.mark.encode())}"

    def has_changed(self) -> bool:
        """Whether the shard holds something else since it was listed; not if it is
        gone."""
        return files.mark(self.uri) not in ("", self.mark)


class PlannedShards(Sequence[Shard]):
    """Shards of a source, each made when it is asked for: few commands ask for any.

    Workers get them as a tuple.
    """

    def __init__(
        self, source: ImageTextSource, places: Sequence[tuple[str, str]]
    ) -> None:
        self._source, self._places = source, places

    def __len__(self) -> int:
        return len(self._places)

    @typing.overload
    def __getitem__(self, index: int) -> Shard: ...

    @typing.overload
    def __getitem__(self, index: slice) -> tuple[Shard, ...]: ...

    def __getitem__(self, index: int | slice) -> Shard | tuple[Shard, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        return Shard(self._source, *self._places[index])

    def __iter__(self) -> Iterator[Shard]:
        return (Shard(self._source, *place) for place in self._places)

    def __reduce__(self) -> tuple[type, tuple[tuple[Shard, ...]]]:
        return tuple, (tuple(self),)


@dataclasses.dataclass(frozen=True)
class Lot:
    """A lot: a fixed list of shards of one source, the unit of every table."""

    source: ImageTextSource
    name: str  # of its tables: `<base>-<digest of the shards>`
    shards: Sequence[Shard] = dataclasses.field(default=(), compare=False, repr=False)
    predecessor: str = ""  # the lot whose rows it takes over where shards are the same

    @property
    def base(self) -> str:
        """The name that the lot shares with its predecessors and successors."""
        return self.name.rpartition("-")[0]


def _short_hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


def list_shards(source: ImageTextSource) -> tuple[Shard, ...]:
    """The shards of a source, sorted by path; raises as `list_marks` does."""
    return tuple(Shard(source, *place) for place in list_marks(source).items())


def list_marks(source: ImageTextSource, known: Sequence[str] = ()) -> dict[str, str]:
    """Path to mark of the shards of a source, sorted by path.

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
    return uri_to_mark


def check_columns(shards: Sequence[Shard]) -> None:
    """Raises ValueError if a shard can be read but lacks a column its source needs.

    Of very many shards some are looked at, from all over the list: a shard that differs
    is an error when it is scored, too.
    """
    parquets = [shard for shard in shards if not _is_tar(shard)]
    chosen = parquets[:: max(1, math.ceil(len(parquets) / _MAX_CHECKED))]
    with futures.ThreadPoolExecutor(_N_CHECKED_AT_ONCE) as executor:
        for shard, error in zip(
            chosen, executor.map(_column_error, chosen), strict=True
        ):
            if error:
                raise ValueError(f"{shard.source.name}={shard.uri}: {error}")


def _column_error(shard: Shard) -> str:
    """The error of the columns; "" for a damaged shard, which scoring counts."""
    try:
        with (
            files.open_for_reading(shard.uri) as file,
            parquet.open_parquet(file) as opened,
        ):
            Columns.find(opened, shard.source)
    except DamageError:
        return ""
    except ShardError as error:
        return str(error)
    except OSError:
        return ""
    return ""


def read_pairs(shard: Shard, limits: Limits) -> Iterator[RawPair]:
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
    >>> for pair in read_pairs(Shard(ImageTextSource("web", path), path), Limits()):
    ...     print([pair.key, pair.text, pair.error])
    ['0', 'a dog', '']
    ['1', '?', 'no image']
    """
    try:
        if _is_tar(shard):
            with files.open_stream(shard.uri) as file:
                yield from tar_pairs.read_pairs(file, shard.source, limits)
        else:
            with files.open_for_reading(shard.uri) as file:
                yield from parquet.read_pairs(file, shard.source, limits)
    except (tars.TarError, ShardError) as error:
        yield RawPair(error=str(error))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        yield RawPair(error=f"shard cannot be opened: {error.strerror or error}")


def read_images(lot: Lot, pairs: Sequence[Pair]) -> Iterator[bytes]:
    """Reads the encoded images of readable pairs of a lot, in their order.

    Args:
      pairs: in the order of the lot.

    Raises:
      ShardError: if an image is not the one that was scored, or is gone.
      OSError: on a failure that another attempt may cure, such as of a network.
    """
    yield from _raise_errors(find_images(lot, pairs))


def find_images(lot: Lot, pairs: Sequence[Pair]) -> Iterator[bytes | ShardError]:
    """`read_images`, with an error in the place of each image that is gone."""
    by_shard = itertools.groupby(pairs, lambda pair: pair.shard)
    chosen = ((lot.shards[number], list(group)) for number, group in by_shard)
    return read_images_of(chosen)


def read_shard_images(shard: Shard, pairs: Sequence[Pair]) -> Iterator[bytes]:
    """Reads the encoded images of readable pairs of a shard, as `read_images` does."""
    yield from _raise_errors(read_images_of([(shard, pairs)]))


def _raise_errors(images: Iterator[bytes | ShardError]) -> Iterator[bytes]:
    for image in images:
        if isinstance(image, ShardError):
            raise image
        yield image


def read_images_of(
    chosen: Iterable[tuple[Shard, Sequence[Pair]]],
) -> Iterator[bytes | ShardError]:
    """Reads the encoded images of readable pairs of many shards, in their order.

    An image that is gone, or is not the one that was scored, is its error, and the
    others are read on. Of tars only the images are read, of Parquet files what
    `chosen_rows` says. Requests for images of all shards share the bounds of
    `chosen_ranges.read_spans`: 32 at once and 64 MiB in memory. Beside them are what
    Arrow holds of the rows that it decodes (a batch, and 1 MiB or the largest page),
    and small requests for the footers and indices of the next 32 Parquet files.

    Args:
      chosen: shards, each with pairs of it in its order.

    Raises:
      OSError: on a failure that another attempt may cure, such as of a network.
    """
    plans = map_ahead(_plan, chosen, _N_PLANNED_AHEAD, n_threads=_N_PLANNED_AHEAD)
    to_read, to_give = itertools.tee(plans)
    spans = itertools.chain.from_iterable(plan.spans for plan in to_read)
    with contextlib.closing(read_spans(spans)) as found:
        for plan in to_give:
            of_plan = itertools.islice(found, len(plan.spans))
            yield from plan.give(of_plan)
            collections.deque(of_plan, maxlen=0)  # what an error has left


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How the images of chosen pairs of one shard are read."""

    shard: Shard
    pairs: Sequence[Pair]
    spans: Sequence[Span]
    decode: Callable[[Iterator[bytes | OSError]], Iterator[bytes | Exception]]

    def give(self, found: Iterator[bytes | OSError]) -> Iterator[bytes | ShardError]:
        """The image of each pair or its error, from what reading the spans gave."""
        images = self.decode(found)
        problem: Exception = ValueError("the image is gone")
        for pair in self.pairs:
            image: bytes | Exception
            try:
                image = next(images, problem)
            except (ShardError, *CANNOT_BE_OPENED) as error:
                image = problem = error  # also of the images that would follow
            if not isinstance(image, bytes):
                yield self._error(image)
            elif content_hash(image) != pair.image_hash:
                yield self._error(
                    ValueError(f"the image of {pair.key!r} is another one")
                )
            else:
                yield image

    def _error(self, error: Exception) -> ShardError:
        if isinstance(error, OSError):
            reason = f": shard cannot be opened: {error.strerror or error}"
        else:
            reason = f" has changed since it was scored: {error}"
        return ShardError(f"{self.shard.uri}{reason}")


def _plan(chosen: tuple[Shard, Sequence[Pair]]) -> _Plan:
    shard, pairs = chosen
    if _is_tar(shard):
        places = [(pair.offset, pair.n_bytes) for pair in pairs]
        return _Plan(shard, pairs, _spans(shard, places), iter)
    try:
        rows = chosen_rows.find_rows(
            shard.uri, shard.source, [pair.offset for pair in pairs]
        )
    except (ShardError, *CANNOT_BE_OPENED) as error:
        same = itertools.repeat(error)
        return _Plan(shard, pairs, (), lambda found: same)
    return _Plan(shard, pairs, _spans(shard, rows.spans), rows.decode)


def _spans(shard: Shard, places: Iterable[tuple[int, int]]) -> list[Span]:
    return [Span(shard.uri, *place) for place in places]


def _is_tar(shard: Shard) -> bool:
    return shard.uri.endswith(".tar")
